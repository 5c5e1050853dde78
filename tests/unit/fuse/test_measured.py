"""What requests cost is counted, and that costs little itself. Covers tdefs/fuse/measured.py and replies.py."""

from __future__ import annotations

import timeit
from collections.abc import Sequence
from errno import EIO

import pytest
import trio
from pyfuse3 import FUSEError

from tdefs.data.complaints import Complaints
from tdefs.fuse.measured import Latency, Measured
from tdefs.fuse.replies import Replies, reply


class Serving(Replies):
    """Reads and writes so many bytes, or fails."""

    def __init__(self) -> None:
        super().__init__(Complaints())

    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        return "base/5/16384"

    @reply
    async def read(self, size: int) -> bytes:
        if size < 0:
            raise OSError(EIO, "disk")
        return bytes(size)

    @reply
    async def write(self, size: int) -> int:
        return size

    @reply
    async def fsync(self) -> None:
        await trio.sleep(0.003)


def test_requests_bytes_and_latency_are_counted_by_operation() -> None:
    served = Serving()
    for size in (100, 200):
        trio.run(served.read, size)
        trio.run(served.write, 2 * size)
    trio.run(served.fsync)
    assert served.requests == {"read": 2, "write": 2, "fsync": 1}
    assert {name: measured.bytes for name, measured in served.measured.items()} == {
        "read": 300,
        "write": 600,
        "fsync": 0,
    }
    took = served.measured["fsync"].latency()
    assert took.count == 1
    assert took.mean_us >= 3000
    assert took.percentile_us(50) >= 4096


def test_a_request_that_fails_has_a_latency_and_no_bytes() -> None:
    served = Serving()
    with pytest.raises(FUSEError):
        trio.run(served.read, -1)
    assert (served.measured["read"].bytes, served.measured["read"].latency().count) == (0, 1)


def test_a_latency_is_in_the_bucket_of_the_next_power_of_two_of_microseconds() -> None:
    measured = Measured()
    for microseconds in (0, 0.5, 1, 3, 4, 1000):
        measured.took(int(microseconds * 1000))
    assert measured.latency() == Latency(1008, (2, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1))


def test_no_latency_is_too_long() -> None:
    measured = Measured()
    measured.took(2**63 - 1)
    assert measured.latency().count == 1


def test_percentiles_are_upper_bounds() -> None:
    took = Latency(0, (0, 90, 9, 1))
    assert [took.percentile_us(percent) for percent in (1, 50, 90, 99, 100)] == [2, 2, 2, 4, 8]
    assert (Latency().percentile_us(50), Latency().mean_us) == (0, 0.0)


def test_counting_costs_well_under_a_microsecond() -> None:
    """So it is worth no switch. Ten times what was measured, since other processes may have the processor."""
    measured = Measured()
    assert min(timeit.repeat(lambda: measured.took(1234), number=10_000, repeat=5)) / 10_000 < 5e-6

"""What requests cost: for each kind of request how many, how many bytes, and a histogram of how long they took."""

from __future__ import annotations

from dataclasses import dataclass

#: 2**63 nanoseconds need no more, so no latency is too long for the list.
MOST_BUCKETS = 64


class Measured:
    """The requests of one kind in one mount. To count one takes less than half a microsecond."""

    __slots__ = ("_buckets", "bytes", "count", "nanoseconds")

    def __init__(self) -> None:
        #: Requests that began; those that are under way have no latency yet.
        self.count = 0
        #: Bytes that were read or written.
        self.bytes = 0
        #: How long all requests that ended took together.
        self.nanoseconds = 0
        self._buckets = [0] * MOST_BUCKETS

    def took(self, nanoseconds: int) -> None:
        """Count a request that has ended after so many nanoseconds."""
        self.nanoseconds += nanoseconds
        self._buckets[(nanoseconds // 1000).bit_length()] += 1

    def latency(self) -> Latency:
        """Return the histogram as it is now."""
        last = max((at for at, count in enumerate(self._buckets) if count), default=-1)
        return Latency(round(self.nanoseconds / 1000), tuple(self._buckets[: last + 1]))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the requests of one kind took that have ended.

    ``buckets[n]`` is the number of requests that took less than ``2**n`` microseconds and did not fit into the
    bucket before. ``total_us`` is the sum of all, in microseconds.
    """

    total_us: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Return how many requests have ended."""
        return sum(self.buckets)

    @property
    def mean_us(self) -> float:
        """Return the mean in microseconds, 0 where no request has ended."""
        return self.total_us / self.count if self.count else 0.0

    def percentile_us(self, percent: float) -> int:
        """Return the microseconds within which *percent* of the requests ended: a power of two; 0 without any."""
        wanted = self.count * percent / 100
        passed = 0
        for at, count in enumerate(self.buckets):
            passed += count
            if count and passed >= wanted:
                return int(2**at)
        return 0

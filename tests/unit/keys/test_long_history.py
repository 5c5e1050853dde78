"""What an entry in the history costs does not grow with the history."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.keys.keystore.entries import HistoryAnchor
from tdefs.keys.keystore.history import append, head_path, history_path, read_history
from tdefs.keys.keystore.history_checking import check_history, head_line, make_line_mac
from tests.unit.keys.keystore_samples import GOLDEN, private_copy

KEY = bytes(range(32))


def long_history(keystore: Path, length: int) -> None:
    """Write a history of so many records as :func:`append` writes them, with its head."""
    lines, mac = [], bytes(32)
    for number in range(1, length + 1):
        body = b'{"n":%d,"time":"2026-01-01T00:00:00Z","event":"unlock","who":{},"what":{}' % number
        mac = make_line_mac(KEY, mac, b"", body)
        lines.append(body + b',"mac":"' + mac.hex().encode() + b'"}\n')
    for path, data in (
        (history_path(keystore), b"".join(lines)),
        (head_path(keystore), head_line(KEY, length, mac)),
    ):
        path.write_bytes(data)
        path.chmod(0o600)


@pytest.mark.parametrize("key", [KEY, None], ids=["unlock", "failure"])
def test_an_append_reads_as_little_of_a_long_history_as_of_a_short_one(tmp_path: Path, key: bytes | None) -> None:
    keystore = private_copy(GOLDEN, tmp_path / "keystore")
    read: dict[int, int] = {}
    for length in (2_000, 100_000):
        long_history(keystore, length)
        sizes: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            for name in ("read", "pread"):
                patch.setattr(os, name, _counted(getattr(os, name), sizes))
            for number in range(1, 4):
                assert append(keystore, "unlock", {}, key)[0] == length + number
        read[length] = sum(sizes)
    assert history_path(keystore).stat().st_size > 100 * (1 << 16)
    assert read[100_000] <= read[2_000] + 1024  # a number has more digits
    assert read[100_000] < 4 * (1 << 16)
    found = check_history(read_history(keystore), KEY, HistoryAnchor("mk_1", bytes(60), 0, bytes(32)), 1)
    assert found.findings == []
    assert found.records[-1]["n"] == 100_003


def _counted(call: Callable[..., bytes], sizes: list[int]) -> Callable[..., bytes]:
    def counted(*args: int) -> bytes:
        data = call(*args)
        sizes.append(len(data))
        return data

    return counted

"""A file shorter than a header is taken for what docs/FORMAT.md says. Covers tdefs/format/header.py."""

from __future__ import annotations

import pytest

from tdefs.format.header import resembles_header

MAGIC = b"\x89TDEFS\r\n"
VOLUME_ID = bytes(range(100, 116))
HEADER = MAGIC + b"\x01\x00\x01\x00\x00\x20\x00\x00" + VOLUME_ID


@pytest.mark.parametrize(
    ("data", "resembles"),
    [
        *((HEADER[:size], size >= 4) for size in range(1, 33)),
        # the first witness is flipped; the second needs all of the volume id
        *((b"\x00" + HEADER[1:size], size >= 8) for size in range(1, 33)),
        *((b"????????" + HEADER[8:size], size == 32) for size in range(8, 33)),
        *((MAGIC[:7] + b"?" + bytes(size - 8), True) for size in range(8, 33)),
        *((b"?" * size, False) for size in range(1, 33)),
    ],
)
def test_a_short_file_is_told_by_what_there_is_of_a_header(data: bytes, resembles: bool) -> None:
    assert resembles_header(data, VOLUME_ID) is resembles

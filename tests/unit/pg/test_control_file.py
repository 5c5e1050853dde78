"""Reading pg_control, on files captured from real clusters. Covers tdefs/pg/control.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdefs.pg.control import (
    BadControlFile,
    ControlFile,
    UnknownControlVersion,
    crc32c,
    parse_control_file,
)

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "pg15_checksums",
            ControlFile(1300, 202209061, 1, 8192, 131072, True, 0x17414F8, 0x17414F8, 16 << 20, 724, 716),
        ),
        (
            "pg15_no_checksums",
            ControlFile(1300, 202209061, 1, 8192, 131072, False, 0x1500718, 0x1500718, 16 << 20, 724, 716),
        ),
        (
            "pg18_checksums",
            ControlFile(1800, 202506291, 1, 8192, 131072, True, 0x16EF458, 0x16EF458, 16 << 20, 752, 744),
        ),
    ],
)
def test_captured_control_file_says_what_pg_controldata_says(name: str, expected: ControlFile) -> None:
    assert parse_control_file((DATA / f"{name}.pg_control").read_bytes()) == expected


def test_crc_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C in RFC 3720 and elsewhere


@pytest.mark.parametrize("offset", [0, 16, 216, 252, 287, 288])
def test_flipped_bit_in_a_control_file_is_caught(offset: int) -> None:
    content = bytearray((DATA / "pg15_checksums.pg_control").read_bytes())
    content[offset] ^= 1
    with pytest.raises(BadControlFile, match="its CRC does not match"):
        parse_control_file(bytes(content))


@pytest.mark.parametrize("length", [0, 19, 20, 291])
def test_control_file_that_is_cut_short_is_refused(length: int) -> None:
    content = (DATA / "pg15_checksums.pg_control").read_bytes()
    with pytest.raises(BadControlFile, match=f"cut short: {length} bytes"):
        parse_control_file(content[:length])


def test_control_file_of_an_unknown_version_is_told_apart_from_a_damaged_one() -> None:
    content = bytearray((DATA / "pg15_checksums.pg_control").read_bytes())
    content[8:12] = (1900).to_bytes(4, "little")
    with pytest.raises(BadControlFile, match="neither its version nor its CRC is valid"):
        parse_control_file(bytes(content))
    content[300:304] = crc32c(bytes(content[:300])).to_bytes(4, "little")
    with pytest.raises(UnknownControlVersion, match="1900"):
        parse_control_file(bytes(content))


def test_flipped_bit_behind_the_crc_of_a_control_file_is_caught() -> None:
    content = bytearray((DATA / "pg15_checksums.pg_control").read_bytes())
    content[5000] ^= 1
    with pytest.raises(BadControlFile, match="it is not all zero after its CRC"):
        parse_control_file(bytes(content))

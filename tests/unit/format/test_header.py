"""Whatever is wrong with a header is told apart from everything else that can be wrong with it."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.format.errors import (
    DamagedHeader,
    ForeignFile,
    MissingHeader,
    OldFormat,
    UnsupportedFormat,
    WrongKey,
)
from tdefs.format.header import (
    ANY_PLACE,
    RECORD_SIZE,
    Binding,
    FileClass,
    Header,
    Identity,
    decode_header,
    encode_header,
    named,
    of_class,
    resembles_header,
    verify_header,
)

VOLUME_ID = bytes(range(0xA0, 0xB0))
MAC_KEY = bytes(range(32))
FINGERPRINT = b"prints_8"
HEADER = Header(
    volume_id=VOLUME_ID,
    file_id=bytes(range(16)),
    key_name="dk_1",
    key_round=3,
    key_fingerprint=FINGERPRINT,
    identities=(Identity(Binding.RELATION, 16384, 16385, 1, 2),),
)
RECORD = encode_header(HEADER, MAC_KEY)
MAC_AT = 448

numbers = st.integers(0, 2**32 - 1)
no_name = st.just(bytes(16))
identities = st.one_of(
    st.sampled_from([ANY_PLACE, *map(of_class, FileClass)]),
    st.builds(named, st.binary(max_size=100)),
    st.builds(Identity, st.just(Binding.SPECIAL), numbers, numbers, st.integers(0, 255), st.just(0), no_name),
    st.builds(Identity, st.just(Binding.RELATION), numbers, numbers, st.integers(0, 255), numbers, no_name),
)


def read(record: bytes, mac_key: bytes = MAC_KEY, fingerprint: bytes = FINGERPRINT) -> Header:
    header = decode_header(record, VOLUME_ID)
    verify_header(record, header, mac_key, fingerprint)
    return header


def with_field(offset: int, value: bytes) -> bytes:
    """The record with another field, as somebody with the key would have written it."""
    fixed = RECORD[:offset] + value + RECORD[offset + len(value) : MAC_AT]
    summed = fixed + hmac.digest(MAC_KEY, fixed, "sha256")
    return summed + hashlib.sha256(summed).digest()


@given(st.lists(identities, min_size=1, max_size=2, unique=True), numbers, st.binary(min_size=16, max_size=16))
def test_a_header_says_what_was_put_in_it(bound: list[Identity], key_round: int, file_id: bytes) -> None:
    header = replace(HEADER, identities=tuple(bound), key_round=key_round, file_id=file_id)
    record = encode_header(header, MAC_KEY)
    assert len(record) == RECORD_SIZE
    assert read(record) == header


def test_every_single_flipped_bit_is_found_and_never_makes_a_plain_file() -> None:
    for bit in range(RECORD_SIZE * 8):
        record = bytearray(RECORD)
        record[bit // 8] ^= 1 << bit % 8
        assert resembles_header(bytes(record), VOLUME_ID), f"bit {bit}"
        with pytest.raises(DamagedHeader):
            read(bytes(record))


def test_a_header_cut_short_is_damage_and_not_a_plain_file() -> None:
    for size in range(8, RECORD_SIZE):
        assert resembles_header(RECORD[:size], VOLUME_ID), f"{size} bytes"
        with pytest.raises(DamagedHeader):
            read(RECORD[:size])


def test_a_record_lies_in_one_sector_and_has_room_for_what_comes() -> None:
    assert RECORD_SIZE == 512
    assert RECORD[160:MAC_AT] == bytes(288)


def test_a_header_of_version_1_is_said_to_be_an_older_tdefs_s() -> None:
    vector = (
        "8954444546530d0a0100010000200000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf101112131415161718191a1b1c1d1e1f646b5f31"
    )
    fixed = bytes.fromhex(vector).ljust(192, b"\0")
    summed = fixed + hmac.digest(MAC_KEY, fixed, "sha256")
    record = (summed + hashlib.sha256(summed).digest()).ljust(RECORD_SIZE, b"\0")
    assert resembles_header(record, VOLUME_ID)
    with pytest.raises(OldFormat, match="made by an older tdefs"):
        decode_header(record, VOLUME_ID)
    with pytest.raises(DamagedHeader):
        decode_header(record[:100] + b"x" + record[101:], VOLUME_ID)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 8192])
def test_an_all_zero_header_is_called_missing(size: int) -> None:
    with pytest.raises(MissingHeader):
        decode_header(bytes(size), VOLUME_ID)


def test_a_header_of_another_volume_is_foreign() -> None:
    with pytest.raises(ForeignFile, match=bytes(16).hex()):
        read(with_field(16, bytes(16)))


def test_any_volume_is_accepted_where_none_is_asked_for() -> None:
    assert decode_header(with_field(16, bytes(16)), None).volume_id == bytes(16)


def test_another_key_of_the_same_name_is_told_by_its_fingerprint() -> None:
    with pytest.raises(WrongKey, match="another key called 'dk_1'"):
        read(RECORD, fingerprint=b"another!")


def test_a_header_forged_without_the_key_is_refused() -> None:
    forged = encode_header(HEADER, bytes(32))
    with pytest.raises(WrongKey, match="MAC"):
        read(forged)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(8, struct.pack("<H", 3), id="version"),
        pytest.param(8, struct.pack("<H", 0), id="version-zero"),
        pytest.param(10, struct.pack("<H", 2), id="suite"),
        pytest.param(12, struct.pack("<I", 4096), id="page-size"),
        pytest.param(96, b"\x07", id="binding"),
        pytest.param(96, b"\x02", id="binding-of-version-1"),
    ],
)
def test_what_a_later_version_may_write_is_unsupported_and_not_damage(offset: int, value: bytes) -> None:
    with pytest.raises(UnsupportedFormat):
        read(with_field(offset, value))


def test_a_key_name_that_is_no_text_is_damage() -> None:
    with pytest.raises(DamagedHeader, match="its data key name is not valid"):
        read(with_field(48, b"\xff"))


@pytest.mark.parametrize("name", [b"a\nb", b"\x1b[2J", b"Dk_1", b"", b"a\0b"])
def test_a_key_name_that_would_be_more_than_a_name_in_a_log_is_damage(name: bytes) -> None:
    with pytest.raises(DamagedHeader, match="its data key name is not valid"):
        read(with_field(48, name.ljust(32, b"\0")))


def test_an_intact_checksum_over_a_wrong_magic_is_damage() -> None:
    with pytest.raises(DamagedHeader, match="magic"):
        read(with_field(0, b"\x88"))


def test_a_header_accepts_what_it_is_bound_to_and_nothing_else() -> None:
    mine, other = HEADER.identities[0], Identity(Binding.RELATION, 16384, 16385, 1, 3)
    assert HEADER.accepts(mine)
    assert not HEADER.accepts(other)
    assert not HEADER.accepts(named(b"global/pg_control"))
    assert not HEADER.accepts(of_class(FileClass.WAL))
    assert HEADER.bound_to(mine, other).accepts(other)
    assert HEADER.bound_to(ANY_PLACE).accepts(other)


@pytest.mark.parametrize("text", [b"", b"listen_addresses = '*'\n", b"\0" * 300, b"15\n", bytes(range(256))])
def test_ordinary_content_does_not_resemble_a_header(text: bytes) -> None:
    assert not resembles_header(text, VOLUME_ID)

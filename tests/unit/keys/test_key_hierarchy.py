"""The promises of tdefs.keys.hierarchy."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import (
    AES_256_XTS,
    DataKey,
    KeyRing,
    MasterKey,
    derive_file_key,
    derive_header_mac_key,
    key_fingerprint,
)

SECRET = bytes(range(32))
FILE_ID = bytes(range(0xA0, 0xB0))
KEY = DataKey("dk_1", 1, AES_256_XTS, SECRET)

#: That of cipher suite 1.
PURPOSE = b"tdefs v1 file key aes-256-xts"


def file_key(data_key: DataKey, file_id: bytes) -> bytes:
    return derive_file_key(data_key, file_id, PURPOSE, 64)


def hkdf_from_stdlib(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, independent of the cryptography package."""
    pseudorandom_key = hmac.digest(bytes(32), secret, hashlib.sha256)
    output = block = b""
    for counter in range(1, 256):
        if len(output) >= length:
            break
        block = hmac.digest(pseudorandom_key, block + info + bytes([counter]), hashlib.sha256)
        output += block
    return output[:length]


def test_file_key_is_the_fixed_vector() -> None:
    expected = bytes.fromhex(
        "90e18f053847ef85b8c3684437d8cdf595a27871c1c237ec8c74b6878b5c693a"
        "f56c77dfe7c97248dfd2fa458372a8a48b8b9858e83dc97aae84188ffee35361"
    )
    assert file_key(KEY, FILE_ID) == expected
    info = PURPOSE + FILE_ID
    assert len(info) == 45
    assert hkdf_from_stdlib(SECRET, info, 64) == expected


def test_header_mac_key_is_the_fixed_vector() -> None:
    expected = bytes.fromhex("fce3f3f281bb298b40958a21b27b2c6ab6ad45afcfdf6802596be679d91d40f4")
    assert derive_header_mac_key(KEY) == expected
    assert hkdf_from_stdlib(SECRET, b"tdefs v1 header mac", 32) == expected


def test_fingerprint_is_the_fixed_vector() -> None:
    expected = bytes.fromhex("4a8684583cbaeea5")
    assert key_fingerprint(KEY) == expected
    assert hkdf_from_stdlib(SECRET, b"tdefs v1 key fingerprint", 8) == expected


def test_another_purpose_gives_another_file_key() -> None:
    assert derive_file_key(KEY, FILE_ID, b"tdefs v1 file key of another suite", 64) != file_key(KEY, FILE_ID)


def test_another_file_id_or_data_key_gives_another_file_key() -> None:
    other_key = DataKey("dk_1", 2, AES_256_XTS, bytes(32))
    keys = {file_key(KEY, FILE_ID), file_key(KEY, bytes(16)), file_key(other_key, FILE_ID)}
    assert len(keys) == 3


@pytest.mark.parametrize("length", [0, 15, 17])
def test_file_id_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="file id"):
        file_key(KEY, bytes(length))


def test_repr_hides_the_secret() -> None:
    marked = b"\xde\xad\xbe\xef" * 8
    key = DataKey("dk_1", 1, AES_256_XTS, marked)
    ring = KeyRing(bytes(16), "dk_1", [key])
    for shown in (repr(key), str(key), repr(MasterKey("mk_1", marked)), repr(ring), str(list(ring))):
        assert "dead" not in shown
        assert "\\xde" not in shown
        assert "_1" in shown


@pytest.mark.parametrize("name", ["", "1k", "Dk", "dk-1", "a" * 32, "dk_1\n", "dk\u0661", "../x"])
def test_key_name_outside_the_pattern_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="key name"):
        DataKey(name, 1, AES_256_XTS, SECRET)
    with pytest.raises(ValueError, match="key name"):
        MasterKey(name, SECRET)


def test_data_key_with_impossible_values_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        DataKey("dk_1", 1, AES_256_XTS, SECRET[1:])
    with pytest.raises(ValueError, match="round"):
        DataKey("dk_1", 0, AES_256_XTS, SECRET)
    with pytest.raises(ValueError, match="algorithm"):
        DataKey("dk_1", 1, "rot13", SECRET)


def ring_of_three() -> KeyRing:
    keys = [("dk_2", 1), ("dk_1", 10), ("dk_1", 9)]
    return KeyRing(bytes(16), "dk_1", [DataKey(name, number, AES_256_XTS, SECRET) for name, number in keys])


def test_current_key_is_the_newest_round_and_old_rounds_stay() -> None:
    ring = ring_of_three()
    assert ring.current("dk_1").round == 10
    assert ring.get("dk_1", 9).round == 9
    assert ring.names() == ["dk_1", "dk_2"]
    assert [(key.name, key.round) for key in ring] == [("dk_1", 9), ("dk_1", 10), ("dk_2", 1)]


def test_unknown_data_key_or_round_has_its_own_error() -> None:
    ring = ring_of_three()
    look_ups: list[Callable[[], DataKey]] = [
        lambda: ring.current("dk_3"),
        lambda: ring.get("dk_1", 11),
        lambda: ring.get("dk_3", 1),
        lambda: ring.get("\x1b[2J", 1),
    ]
    for look_up in look_ups:
        with pytest.raises(TdefsError) as caught:
            look_up()
        assert caught.value.exit_code == Exit.DATA_KEY_UNKNOWN
        assert "dk_1, dk_2" in caught.value.detail
        assert caught.value.message.isprintable()


def test_inconsistent_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="volume id"):
        KeyRing(bytes(15), "dk_1", [KEY])
    with pytest.raises(ValueError, match="default"):
        KeyRing(bytes(16), "dk_2", [KEY])
    with pytest.raises(ValueError, match="twice"):
        KeyRing(bytes(16), "dk_1", [KEY, DataKey("dk_1", 1, AES_256_XTS, bytes(32))])

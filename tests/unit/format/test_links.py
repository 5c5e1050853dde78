"""The text of a symbolic link tells its target to nobody without the key, and leads nowhere if it was moved."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.data.link_encryption import LinkCipher
from tdefs.format.errors import (
    DamagedLink,
    DestroyedKey,
    ForeignLink,
    FormatError,
    MisplacedLink,
    UnknownDataKey,
    WrongKey,
)
from tdefs.format.links import (
    MAX_STORED_BYTES,
    MAX_TARGET_BYTES,
    PREFIX,
    Link,
    LinkHead,
    decode_link,
    encode_link,
    open_link,
    place_of_link,
    target_length,
)
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing, derive_link_key, key_fingerprint
from tests.support.served_volume import DK_1, RING, VOLUME_ID

VECTOR = json.loads((Path(__file__).parent / "link_vector.json").read_text())
CIPHER = LinkCipher(lambda: RING)
PLACE = b"pg_tblspc/16385"


def test_a_golden_link_is_written_and_read_as_ever() -> None:
    """The format is a promise: the same key, link id, place and target give the same text."""
    key = DataKey("dk_1", 1, AES_256_XTS, bytes.fromhex(VECTOR["data_key"]))
    link_id = bytes.fromhex(VECTOR["link_id"])
    assert key_fingerprint(key).hex() == VECTOR["fingerprint"]
    assert derive_link_key(key, link_id).hex() == VECTOR["link_key"]
    places = tuple(place_of_link(path.encode()) for path in VECTOR["paths"])
    assert [place.hex() for place in places] == VECTOR["places"]
    link = Link(LinkHead("dk_1", 1, key_fingerprint(key), link_id), places, VECTOR["target"].encode())
    volume_id = bytes.fromhex(VECTOR["volume_id"])
    text = encode_link(link, volume_id, derive_link_key(key, link_id))
    assert text.decode() == VECTOR["text"]
    assert open_link(decode_link(text), volume_id, derive_link_key(key, link_id)) == link


@pytest.mark.parametrize("length", [1, 2, 3, 4, 100, MAX_TARGET_BYTES])
def test_every_length_of_a_target_is_told_by_the_stored_size(length: int) -> None:
    text = CIPHER.encrypt(b"t" * length, (PLACE,), None)
    assert len(text) <= MAX_STORED_BYTES
    assert target_length(len(text)) == length
    assert CIPHER.decrypt_at(text, PLACE).target == b"t" * length
    # a rename under way needs no more room than a link at rest
    assert len(CIPHER.encrypt(b"t" * length, (PLACE, b"other"), None)) == len(text)


def test_a_target_that_does_not_fit_is_refused() -> None:
    for target in (b"", b"t" * (MAX_TARGET_BYTES + 1)):
        with pytest.raises(ValueError, match="the target of a link has 1 to"):
            CIPHER.encrypt(target, (PLACE,), None)


def test_the_text_shows_nothing_of_the_target_and_is_another_each_time() -> None:
    texts = [CIPHER.encrypt(b"/srv/secret", (PLACE,), None) for _ in range(2)]
    assert texts[0] != texts[1]
    assert all(b"secret" not in base64.urlsafe_b64decode(text[len(PREFIX) :] + b"==") for text in texts)


def test_a_link_is_of_its_places_alone() -> None:
    text = CIPHER.encrypt(b"/srv/one", (PLACE, b"pg_tblspc/16386"), None)
    for path in (PLACE, b"pg_tblspc/16386"):
        assert CIPHER.decrypt_at(text, path).target == b"/srv/one"
    for path in (b"pg_tblspc/16387", b"pg_wal", b"", b"pg_tblspc/16385/"):
        with pytest.raises(MisplacedLink):
            CIPHER.decrypt_at(text, path)
    # an unused slot is no place
    with pytest.raises(MisplacedLink):
        replace(CIPHER.decrypt(CIPHER.encrypt(b"t", (PLACE,), None)), places=()).check_lies_at(PLACE)


def test_every_flipped_bit_and_every_cut_is_refused() -> None:
    text = CIPHER.encrypt(b"/srv/one", (PLACE,), "dk_2")
    for at in range(len(text)):
        for bit in range(8):
            changed = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            with pytest.raises(FormatError):
                CIPHER.decrypt_at(changed, PLACE)
        with pytest.raises(FormatError):
            CIPHER.decrypt_at(text[:at], PLACE)
    with pytest.raises(FormatError):
        CIPHER.decrypt_at(text + b"A", PLACE)


@pytest.mark.parametrize("text", [b"/etc/passwd", b"", b"..", b"tdefs:1:AAAA", b"\xff\xfe"])
def test_a_link_of_somebody_else_is_told_from_a_damaged_one(text: bytes) -> None:
    with pytest.raises(ForeignLink, match="was not made by tdefs"):
        decode_link(text)
    with pytest.raises(DamagedLink):
        decode_link(PREFIX + text)


def test_a_link_of_another_volume_or_key_is_refused() -> None:
    text = CIPHER.encrypt(b"/srv/one", (PLACE,), None)
    elsewhere = LinkCipher(lambda: KeyRing(bytes(16), "dk_1", [DK_1]))
    with pytest.raises(ForeignLink, match="made for another volume"):
        elsewhere.decrypt(text)
    namesake = DataKey("dk_1", 1, AES_256_XTS, bytes(32))
    with pytest.raises(WrongKey):
        LinkCipher(lambda: KeyRing(VOLUME_ID, "dk_1", [namesake])).decrypt(text)
    second = DataKey("dk_1", 2, AES_256_XTS, bytes(32))
    with pytest.raises(UnknownDataKey):
        LinkCipher(lambda: KeyRing(VOLUME_ID, "dk_1", [second])).decrypt(text)
    destroyed = KeyRing(VOLUME_ID, "dk_1", [second], destroyed={("dk_1", 1): None})
    with pytest.raises(DestroyedKey):
        LinkCipher(lambda: destroyed).decrypt(text)

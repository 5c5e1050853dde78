"""The promises of tdefs.keys.ring_message: only who has the keys can send new ones, and nobody reads along."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing
from tdefs.keys.ring_message import RingRefusedError, decrypt_ring, encrypt_ring
from tests.unit.keys.keystore_samples import OTHER_VOLUME_ID, VOLUME_ID, everything_shown

DK_1 = DataKey("dk_1", 1, AES_256_XTS, bytes(range(32)))
DK_1_2 = DataKey("dk_1", 2, AES_256_XTS, bytes(range(1, 33)))
DK_2 = DataKey("dk_2", 1, AES_256_XTS, bytes(range(2, 34)))
HELD = KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_2], revision=5)
NEW = KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_1_2], revoked=[("dk_1", 1)], destroyed={("dk_2", 1): None}, revision=6)


def refusal(message: dict[str, Any], held: KeyRing = HELD) -> str:
    with pytest.raises(RingRefusedError) as caught:
        decrypt_ring(message, held)
    shown = everything_shown(caught.value)
    for key in (DK_1, DK_1_2, DK_2):
        assert key.secret.hex() not in shown
    return str(caught.value)


def over_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    found = json.loads(json.dumps(message))
    assert isinstance(found, dict)
    return found


def test_new_keys_arrive_with_their_states() -> None:
    ring = decrypt_ring(over_the_wire(encrypt_ring(NEW, [DK_2, DK_1])), HELD)
    assert list(ring) == list(NEW)
    assert (ring.revoked, ring.destroyed, ring.revision) == (NEW.revoked, NEW.destroyed, 6)
    assert ring.default_name == "dk_1"
    assert ring.current("dk_1") == DK_1_2


def test_no_key_is_in_the_message_in_the_clear() -> None:
    wire = json.dumps(encrypt_ring(NEW, [DK_1, DK_2]))
    for key in (DK_1, DK_1_2, DK_2):
        assert key.secret.hex() not in wire
        assert key.secret.hex().encode().hex() not in wire


def test_no_message_is_made_that_anybody_could_open() -> None:
    with pytest.raises(RingRefusedError, match="none of the keys"):
        encrypt_ring(NEW, [])


def test_sender_without_the_keys_is_refused() -> None:
    stranger = replace(DK_1, secret=bytes(32))
    assert "not encrypted" in refusal(encrypt_ring(NEW, [stranger, DK_2]))
    assert "not encrypted" in refusal(encrypt_ring(NEW, [DK_1]) | {"shared": []})
    assert "not encrypted" in refusal(encrypt_ring(NEW, [DK_1, DK_2, replace(DK_2, name="dk_9")]))


def test_sender_with_one_leaked_key_of_several_is_refused() -> None:
    both = KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_2, DK_1_2], revision=6)
    assert "another key" in refusal(encrypt_ring(both, [DK_2]))


def test_ring_of_another_volume_is_refused() -> None:
    foreign = KeyRing(OTHER_VOLUME_ID, "dk_1", [DK_1, DK_2], revision=6)
    assert "not encrypted" in refusal(encrypt_ring(foreign, [DK_1, DK_2]))


def test_older_ring_is_refused_so_that_no_revocation_is_undone_by_a_replay() -> None:
    old = encrypt_ring(KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_2], revision=4), [DK_1, DK_2])
    assert "older" in refusal(old)
    assert decrypt_ring(encrypt_ring(HELD, [DK_1, DK_2]), HELD).revision == 5


def test_ring_that_changes_or_loses_a_key_is_refused() -> None:
    changed = KeyRing(VOLUME_ID, "dk_1", [DK_1, replace(DK_2, secret=bytes(32))], revision=6)
    assert refusal(encrypt_ring(changed, [DK_1, DK_2])) == "it has another key for round 1 of dk_2"
    lost = KeyRing(VOLUME_ID, "dk_1", [DK_1], revision=6)
    assert refusal(encrypt_ring(lost, [DK_1, DK_2])) == "it lacks round 1 of dk_2"


def test_any_changed_bit_is_found() -> None:
    message = encrypt_ring(NEW, [DK_1, DK_2])
    sealed = bytes.fromhex(message["encrypted"])
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1
        assert "not encrypted" in refusal(message | {"encrypted": altered.hex()})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just("dk_1"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["shared", "encrypted"]), values))
def test_arbitrary_messages_are_refused(message: dict[str, Any]) -> None:
    refusal(message)
    refusal(encrypt_ring(NEW, [DK_1, DK_2]) | {"shared": message.get("shared")})

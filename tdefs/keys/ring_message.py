"""New keys on their way to a running daemon, encrypted under the data keys that both sides already have.

The key of a message is HKDF over the secrets of all rounds that both have. So only a process with the volume's
keys can make or read a message. A process that listens on the socket learns nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.hierarchy import ALGORITHMS, KEY_NAME, MAX_ROUND, SECRET_BYTES, DataKey, KeyRing
from tdefs.keys.wrapping import hkdf_sha256

_PURPOSE = b"tdefs v1 key ring message"
_MESSAGE_KEY_BYTES = 32
_NONCE_BYTES = 12
_MAX_REVISION = 2**63 - 1

Rounds = list[tuple[str, int]]


class RingRefusedError(Exception):
    """A message is not accepted, or cannot be made; the text says why, and has no secret."""


def encrypt_ring(new: KeyRing, shared: Iterable[DataKey]) -> dict[str, Any]:
    """Return the message that carries the ring *new* to a process with the keys *shared*, as JSON's own types.

    :raises RingRefusedError: there is no shared key at all: anybody could read such a message.
    """
    keys = sorted(shared, key=_place)
    if not keys:
        raise RingRefusedError("the other side says that it has none of the keys")
    rounds = [_place(key) for key in keys]
    content = {
        "revision": new.revision,
        "default": new.default_name,
        "keys": [
            {"name": key.name, "round": key.round, "algorithm": key.algorithm, "secret": key.secret.hex()}
            for key in new
        ],
        "revoked": sorted(new.revoked),
        "destroyed": sorted(new.destroyed),
    }
    nonce = os.urandom(_NONCE_BYTES)
    encrypted = AESGCM(_message_key(keys, new.volume_id)).encrypt(
        nonce, json.dumps(content).encode("ascii"), _bound_to(new.volume_id, rounds)
    )
    return {"shared": [list(one) for one in rounds], "encrypted": (nonce + encrypted).hex()}


def decrypt_ring(message: Mapping[str, Any], held: KeyRing) -> KeyRing:
    """Return the new ring in *message*, for a process with the ring *held*.

    It is accepted only if it was encrypted under every key that both rings have, is not older, changes no key, and
    lacks none but those that it says are destroyed.

    :raises RingRefusedError: it is not accepted.
    """
    try:
        rounds = _read_rounds(message.get("shared"), "shared")
        have = {_place(key): key for key in held}
        if not rounds or not have.keys() >= set(rounds):
            raise RingRefusedError("it is not encrypted under keys of this mount")
        encrypted = message.get("encrypted")
        data = bytes.fromhex(encrypted) if isinstance(encrypted, str) else b""
        content = AESGCM(_message_key([have[one] for one in sorted(set(rounds))], held.volume_id)).decrypt(
            data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound_to(held.volume_id, rounds)
        )
        new = _read_ring(fields.read_json(content), held.volume_id)
    except (MalformedError, InvalidTag, ValueError):
        # raised below, not here: an error raised here would have this one, which may hold what was decrypted
        pass
    else:
        _check(new, held, set(rounds))
        new.history_key = held.history_key
        return new
    raise RingRefusedError("it is not encrypted under the keys of this mount")


def _check(new: KeyRing, held: KeyRing, shared: set[tuple[str, int]]) -> None:
    keys = {_place(key): key for key in new}
    if new.revision < held.revision:
        raise RingRefusedError(f"it is older (revision {new.revision}) than the keys of this mount")
    for key in held:
        place = _place(key)
        if place in keys and (keys[place] != key or place not in shared):
            raise RingRefusedError(f"it has another key for round {key.round} of {key.name}")
        if place not in keys and place not in new.destroyed:
            raise RingRefusedError(f"it lacks round {key.round} of {key.name}")


def _place(key: DataKey) -> tuple[str, int]:
    return key.name, key.round


def _message_key(keys: Iterable[DataKey], volume_id: bytes) -> bytes:
    return hkdf_sha256(b"".join(key.secret for key in keys), _PURPOSE + volume_id, _MESSAGE_KEY_BYTES)


def _bound_to(volume_id: bytes, rounds: Rounds) -> bytes:
    return _PURPOSE + volume_id + json.dumps(sorted(rounds)).encode("ascii")


def _read_ring(value: Any, volume_id: bytes) -> KeyRing:
    members = fields.read_object(value, "ring", ("revision", "default", "keys", "revoked", "destroyed"))
    return KeyRing(
        volume_id,
        fields.read_text(members["default"], "default", KEY_NAME),
        fields.read_list(members["keys"], "keys", _read_key),
        revoked=_read_rounds(members["revoked"], "revoked"),
        destroyed=dict.fromkeys(_read_rounds(members["destroyed"], "destroyed")),
        revision=fields.read_int(members["revision"], "revision", 0, _MAX_REVISION),
    )


def _read_key(value: Any, where: str) -> DataKey:
    members = fields.read_object(value, where, ("name", "round", "algorithm", "secret"))
    return DataKey(
        fields.read_text(members["name"], where, KEY_NAME),
        fields.read_int(members["round"], where, 1, MAX_ROUND),
        fields.read_choice(members["algorithm"], where, ALGORITHMS),
        fields.read_hex(members["secret"], where, SECRET_BYTES),
    )


def _read_rounds(value: Any, where: str) -> Rounds:
    if not isinstance(value, list) or not all(isinstance(one, list) and len(one) == 2 for one in value):
        raise MalformedError(f"{where}: expected pairs of a name and a round")
    return [
        (fields.read_text(name, where, KEY_NAME), fields.read_int(number, where, 1, MAX_ROUND))
        for name, number in value
    ]

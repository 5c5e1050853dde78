"""Sealing a keystore document: wrapping the keys in it and making the MAC over all of it; and the reverse."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.keys.document import (
    ACTIVE,
    MAC_BYTES,
    DataKeyEntry,
    Document,
    MasterKeyEntry,
    ProtectorEntry,
    RoundEntry,
    damaged,
)
from tdefs.keys.hierarchy import AES_256_XTS, SECRET_BYTES, DataKey, KeyRing, MasterKey
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.protectors.base import Protector, WrongSecretError
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

FIRST_MASTER_KEY = "mk_1"
FIRST_PROTECTOR = "pr_1"

_MAC_PURPOSE = b"tdefs v1 keystore mac"
_DATA_KEY_WRAPPING_PURPOSE = b"tdefs v1 data key wrapping"
_DERIVED_KEY_BYTES = 32
_MASTER_KEY_PURPOSE_PREFIX = "master key by "
_DATA_KEY_PURPOSE = "data key"


def new_document(volume_id: bytes, protector: Protector, data_key_names: Sequence[str]) -> Document:
    """Return the sealed document of a new volume: new keys, and one protector that has wrapped mk_1.

    ``data_key_names`` are the data keys, the default first. Raises ValueError if one is invalid or there
    twice or none is given, and what ``protector.wrap`` raises.
    """
    if not data_key_names or len(set(data_key_names)) != len(data_key_names):
        raise ValueError("a keystore has at least one data key, and each name once")
    now = datetime.now(UTC).replace(microsecond=0)
    master = MasterKey(FIRST_MASTER_KEY, os.urandom(SECRET_BYTES))
    wrapped = protector.wrap(
        master.secret, master_key_context(volume_id, master.name, protector.kind, FIRST_PROTECTOR)
    )
    keys = [DataKey(name, 1, AES_256_XTS, os.urandom(SECRET_BYTES)) for name in data_key_names]
    unsigned = Document(
        volume_id=volume_id,
        created=now,
        master_keys=(MasterKeyEntry(master.name, now, current=True),),
        protectors=(
            ProtectorEntry(FIRST_PROTECTOR, protector.kind, now, master.name, wrapped.params, wrapped.wrapped),
        ),
        data_keys=tuple(
            DataKeyEntry(key.name, key is keys[0], (_wrap_data_key(volume_id, key, master, now),)) for key in keys
        ),
        mac=bytes(MAC_BYTES),
    )
    return _sign(unsigned, master)


def _wrap_data_key(volume_id: bytes, key: DataKey, master: MasterKey, created: datetime) -> RoundEntry:
    context = _data_key_context(volume_id, key.name, key.round, master.name)
    wrapped = wrap_secret(_data_key_wrapping_key(master), key.secret, context)
    return RoundEntry(key.round, key.algorithm, created, ACTIVE, master.name, wrapped)


def open_keys(document: Document, masters: Mapping[str, MasterKey]) -> KeyRing:
    """Check the MAC and unwrap every data key with ``masters``, which has at least the current one.

    Raises TdefsError: KEYSTORE_DAMAGED; WRONG_SECRET if a data key's master key is not among ``masters``.
    """
    try:
        _mac(document, masters[document.current_master_key().name]).verify(document.mac)
    except InvalidSignature:
        raise damaged("it was altered by someone without the master key") from None
    return KeyRing(
        document.volume_id,
        document.default_data_key().name,
        [
            _unwrap_round(document.volume_id, key.name, entry, masters)
            for key in document.data_keys
            for entry in key.rounds
        ],
    )


def _unwrap_round(volume_id: bytes, name: str, entry: RoundEntry, masters: Mapping[str, MasterKey]) -> DataKey:
    where = f"round {entry.round} of data key {name}"
    master = masters.get(entry.wrapped_by)
    if master is None:
        raise WrongSecretError(
            f"{where} is wrapped by master key {entry.wrapped_by}, which this secret does not unlock"
        )
    context = _data_key_context(volume_id, name, entry.round, master.name)
    try:
        secret = unwrap_secret(_data_key_wrapping_key(master), entry.wrapped, context)
    except UnwrapFailedError:
        raise damaged(f"{where} cannot be unwrapped") from None
    return DataKey(name, entry.round, entry.algorithm, secret)


def _sign(document: Document, master: MasterKey) -> Document:
    """Return ``document`` with the MAC that the current master key makes."""
    return replace(document, mac=_mac(document, master).finalize())


def _mac(document: Document, master: MasterKey) -> HMAC:
    key = hkdf_sha256(master.secret, _MAC_PURPOSE + document.volume_id, _DERIVED_KEY_BYTES)
    mac = HMAC(key, SHA256())
    mac.update(document.signed_bytes())
    return mac


def _data_key_wrapping_key(master: MasterKey) -> bytes:
    return hkdf_sha256(master.secret, _DATA_KEY_WRAPPING_PURPOSE, _DERIVED_KEY_BYTES)


def master_key_context(volume_id: bytes, name: str, kind: str, protector_id: str) -> WrapContext:
    """Return what a protector of ``kind`` binds the master key ``name`` to."""
    return WrapContext(volume_id, _MASTER_KEY_PURPOSE_PREFIX + kind, name, 0, protector_id)


def _data_key_context(volume_id: bytes, name: str, round: int, master_name: str) -> WrapContext:
    return WrapContext(volume_id, _DATA_KEY_PURPOSE, name, round, master_name)

"""The keys in a keystore's document: how each is wrapped and unwrapped, and the MAC over the whole document."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tdefs.keys.hierarchy import AES_256_XTS, SECRET_BYTES, DataKey, KeyRing, MasterKey, key_fingerprint
from tdefs.keys.keystore.entries import (
    ACTIVE,
    MAC_BYTES,
    REVOKED,
    DataKeyEntry,
    Document,
    HistoryAnchor,
    MasterKeyEntry,
    Place,
    ProtectorEntry,
    RoundEntry,
    Statements,
    VolumeEntry,
    damaged,
)
from tdefs.keys.keystore.text import signed_bytes
from tdefs.keys.protectors.base import Protector, WrongSecretError
from tdefs.keys.wrapping import (
    UnwrapFailedError,
    WrapContext,
    fits_mac,
    hkdf_sha256,
    make_mac,
    unwrap_secret,
    wrap_secret,
)

FIRST_MASTER_KEY = "mk_1"
FIRST_PROTECTOR = "pr_1"
FIRST_VOLUME = "vol_1"

_DERIVED_KEY_BYTES = 32
_MAC_PURPOSE = b"tdefs v1 keystore mac"
# What keys derive from a master key, or from a protector key, by what they wrap.
_DATA_KEY_WRAPPING = b"tdefs v1 data key wrapping"
_MASTER_KEY_WRAPPING = b"tdefs v1 master key wrapping"
_PROTECTOR_KEY_WRAPPING = b"tdefs v1 protector key wrapping"
_HISTORY_KEY_WRAPPING = b"tdefs v1 history key wrapping"
_HISTORY_KEY_NAME = "history"


def now() -> datetime:
    """Return the time as a keystore has it: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def new_document(
    volume_id: bytes,
    protector: Protector,
    data_key_names: Sequence[str],
    place: Place | None = None,
    statements: Statements | None = None,
) -> Document:
    """Return the document of a new volume: new keys, and one protector that opens mk_1.

    :param data_key_names: the names of the data keys, the default first.
    :param place: where the volume is, which the keystore then knows; *statements* say what it may do.
    :raises ValueError: a name is invalid or there twice, or none is given.
    :raises TdefsError: what ``protector.wrap`` raises.
    """
    if not data_key_names or len(set(data_key_names)) != len(data_key_names):
        raise ValueError("a keystore has at least one data key, and each name once")
    created = now()
    master = MasterKey(FIRST_MASTER_KEY, os.urandom(SECRET_BYTES))
    keys = [DataKey(name, 1, AES_256_XTS, os.urandom(SECRET_BYTES)) for name in data_key_names]
    unsigned = Document(
        volume_id=volume_id,
        created=created,
        master_keys=(MasterKeyEntry(master.name, created, current=True),),
        protectors=(new_protector_entry(volume_id, protector, FIRST_PROTECTOR, "", master),),
        data_keys=tuple(
            DataKeyEntry(key.name, key is keys[0], (new_round_entry(volume_id, key, master),)) for key in keys
        ),
        mac=bytes(MAC_BYTES),
        revision=1,
        history=new_history_anchor(volume_id, master),
        volumes=() if place is None else (new_volume_entry(FIRST_VOLUME, place, statements or Statements()),),
    )
    return sign(unsigned, master)


def new_volume_entry(id: str, place: Place, may: Statements) -> VolumeEntry:
    """Return the entry of a volume that is registered now, and of what it *may* do."""
    return VolumeEntry(id, now(), **vars(place), **vars(may))


def sign(document: Document, master: MasterKey) -> Document:
    """Return *document* with the MAC that *master*, the current master key, makes."""
    return replace(document, mac=make_mac(_mac_key(document, master), signed_bytes(document)))


def check_mac(document: Document, master: MasterKey) -> None:
    """Check that *master*, the current master key, has made the MAC.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    if not fits_mac(document.mac, _mac_key(document, master), signed_bytes(document)):
        raise damaged("it was altered by someone without the master key")


def _mac_key(document: Document, master: MasterKey) -> bytes:
    return hkdf_sha256(master.secret, _MAC_PURPOSE + document.volume_id, _DERIVED_KEY_BYTES)


# --- protectors


def new_protector_entry(
    volume_id: bytes, protector: Protector, id: str, label: str, master: MasterKey
) -> ProtectorEntry:
    """Return an entry with a new protector key, wrapped by *protector*.

    :raises TdefsError: what ``protector.wrap`` raises.
    """
    key = os.urandom(SECRET_BYTES)
    wrapped = protector.wrap(key, _protector_key_context(volume_id, id, protector.kind))
    entry = ProtectorEntry(id, protector.kind, now(), master.name, wrapped.params, wrapped.wrapped, label)
    return give_master_key(volume_id, entry, key, master)


def give_master_key(volume_id: bytes, entry: ProtectorEntry, key: bytes, master: MasterKey) -> ProtectorEntry:
    """Return *entry*, whose protector key is *key*, changed so that it opens *master*."""
    return replace(
        entry,
        master_key=master.name,
        wrapped_master_key=_wrap(
            key, _MASTER_KEY_WRAPPING, master.secret, _master_context(volume_id, entry, master.name)
        ),
        kept_key=_wrap(master.secret, _PROTECTOR_KEY_WRAPPING, key, _kept_context(volume_id, entry, master.name)),
    )


def kept_protector_key(volume_id: bytes, entry: ProtectorEntry, master: MasterKey) -> bytes:
    """Return the protector key of *entry*, unwrapped by the master key.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    context = _kept_context(volume_id, entry, master.name)
    what = f"the key of protector {entry.id}"
    return _unwrap(master.secret, _PROTECTOR_KEY_WRAPPING, entry.kept_key, context, what)


def open_master_key(document: Document, entry: ProtectorEntry, protector: Protector) -> MasterKey:
    """Return the master key of *entry*, by the secret of *protector*.

    :raises NotMineError: the protector has not made the entry.
    :raises WrongSecretError: the secret does not fit.
    :raises TdefsError: KEYSTORE_DAMAGED, and what fetching the secret raises.
    """
    key = protector.unwrap(entry, _protector_key_context(document.volume_id, entry.id, entry.kind))
    return master_key_by_protector_key(document.volume_id, entry, key)


def master_key_by_protector_key(volume_id: bytes, entry: ProtectorEntry, key: bytes) -> MasterKey:
    """Return the master key of *entry*, whose protector key is *key*.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    context = _master_context(volume_id, entry, entry.master_key)
    what = f"the master key of protector {entry.id}"
    return MasterKey(entry.master_key, _unwrap(key, _MASTER_KEY_WRAPPING, entry.wrapped_master_key, context, what))


# --- data keys and the history's key


def new_round_entry(volume_id: bytes, key: DataKey, master: MasterKey) -> RoundEntry:
    """Return the entry of a new round of a data key."""
    entry = RoundEntry(key.round, key.algorithm, now(), ACTIVE, None, None, key_fingerprint(key))
    return wrap_round(volume_id, entry, key, master)


def wrap_round(volume_id: bytes, entry: RoundEntry, key: DataKey, master: MasterKey) -> RoundEntry:
    """Return *entry* with its *key* wrapped by *master*."""
    context = _data_key_context(volume_id, key.name, key.round, master.name)
    return replace(
        entry,
        wrapped_by=master.name,
        wrapped=_wrap(master.secret, _DATA_KEY_WRAPPING, key.secret, context),
        fingerprint=key_fingerprint(key),
    )


def open_keys(document: Document, masters: Mapping[str, MasterKey]) -> KeyRing:
    """Check the MAC, and unwrap every data key with *masters*, which has at least the current one.

    :raises TdefsError: KEYSTORE_DAMAGED; WRONG_SECRET if the master key of a data key is not among *masters*.
    """
    master = masters[document.current_master_key().name]
    check_mac(document, master)
    rounds = [(key.name, entry) for key in document.data_keys for entry in key.rounds]
    return KeyRing(
        document.volume_id,
        document.default_data_key().name,
        [
            unwrap_round(document.volume_id, name, entry, masters)
            for name, entry in rounds
            if entry.wrapped is not None
        ],
        revoked=[(name, entry.round) for name, entry in rounds if entry.state == REVOKED],
        destroyed=document.destroyed_rounds(),
        revision=document.revision,
        history_key=open_history_key(document.volume_id, document.history, master),
    )


def unwrap_round(volume_id: bytes, name: str, entry: RoundEntry, masters: Mapping[str, MasterKey]) -> DataKey:
    """Return the key of a round that is not destroyed.

    :raises TdefsError: as :func:`open_keys`.
    """
    where = f"round {entry.round} of data key {name}"
    master = masters.get(entry.wrapped_by or "")
    if master is None:
        raise WrongSecretError(
            f"{where} is wrapped by master key {entry.wrapped_by}, which this secret does not unlock"
        )
    context = _data_key_context(volume_id, name, entry.round, master.name)
    secret = _unwrap(master.secret, _DATA_KEY_WRAPPING, entry.wrapped or b"", context, where)
    key = DataKey(name, entry.round, entry.algorithm, secret)
    if entry.fingerprint and entry.fingerprint != key_fingerprint(key):
        raise damaged(f"{where} has another fingerprint than the one noted")
    return key


def new_history_anchor(volume_id: bytes, master: MasterKey) -> HistoryAnchor:
    """Return the anchor of an empty history, with a new key."""
    return wrap_history_key(
        volume_id, HistoryAnchor("", b"", 0, bytes(MAC_BYTES)), os.urandom(SECRET_BYTES), master
    )


def wrap_history_key(volume_id: bytes, anchor: HistoryAnchor, key: bytes, master: MasterKey) -> HistoryAnchor:
    """Return *anchor* with the history's *key* wrapped by *master*."""
    wrapped = _wrap(master.secret, _HISTORY_KEY_WRAPPING, key, _history_context(volume_id, master.name))
    return replace(anchor, wrapped_by=master.name, wrapped=wrapped)


def open_history_key(volume_id: bytes, anchor: HistoryAnchor, master: MasterKey) -> bytes:
    """Return the key of the history's MACs.

    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    context = _history_context(volume_id, master.name)
    return _unwrap(master.secret, _HISTORY_KEY_WRAPPING, anchor.wrapped, context, "the key of the history")


# --- wrapping, and the contexts


def _wrap(key: bytes, purpose: bytes, secret: bytes, context: WrapContext) -> bytes:
    return wrap_secret(hkdf_sha256(key, purpose, _DERIVED_KEY_BYTES), secret, context)


def _unwrap(key: bytes, purpose: bytes, wrapped: bytes, context: WrapContext, what: str) -> bytes:
    """Return the secret in *wrapped*.

    :param what: names it for the error.
    :raises TdefsError: KEYSTORE_DAMAGED.
    """
    try:
        return unwrap_secret(hkdf_sha256(key, purpose, _DERIVED_KEY_BYTES), wrapped, context)
    except UnwrapFailedError:
        raise damaged(f"{what} cannot be unwrapped") from None


def _protector_key_context(volume_id: bytes, id: str, kind: str) -> WrapContext:
    return WrapContext(volume_id, f"protector key by {kind}", id, 0, id)


def _master_context(volume_id: bytes, entry: ProtectorEntry, master_name: str) -> WrapContext:
    return WrapContext(volume_id, "master key", master_name, 0, entry.id)


def _kept_context(volume_id: bytes, entry: ProtectorEntry, master_name: str) -> WrapContext:
    return WrapContext(volume_id, "protector key", entry.id, 0, master_name)


def _data_key_context(volume_id: bytes, name: str, round: int, master_name: str) -> WrapContext:
    return WrapContext(volume_id, "data key", name, round, master_name)


def _history_context(volume_id: bytes, master_name: str) -> WrapContext:
    return WrapContext(volume_id, "history key", _HISTORY_KEY_NAME, 0, master_name)

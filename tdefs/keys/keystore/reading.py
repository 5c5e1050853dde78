"""The document of a keystore, read from JSON: every member is there, of the right type, and within its bounds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from tdefs.errors import KeystoreDamagedError
from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.hierarchy import ALGORITHMS, FINGERPRINT_BYTES, KEY_NAME, MAX_ROUND, VOLUME_ID_BYTES
from tdefs.keys.keystore.entries import (
    DESTROYED,
    FIRST_SUITE,
    MAC_BYTES,
    MAX_LABEL_CHARACTERS,
    REVOKED,
    STATES,
    VERSION,
    DataKeyEntry,
    Document,
    HistoryAnchor,
    MasterKeyEntry,
    ProtectorEntry,
    RoundEntry,
    VolumeEntry,
    is_label,
)
from tdefs.keys.wrapping import WRAPPED_BYTES

FORMAT = "tdefs keystore"

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,30}", re.ASCII)
_MAX_PARAMETER_CHARACTERS = 4096
_MAX_COUNT = 2**63 - 1
_MAX_PATH_BYTES = 4096
_MAX_NUMBER = 2**64 - 1  # of an inode or a device
_MAX_SUITE = 2**16 - 1
_DIGEST = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII)

#: Reads the JSON value at a place, which is the second argument; raises MalformedError.
_Read = Callable[[Any, str], Any]


def read_document(value: Any) -> Document:
    """Return the document of a keystore file, whose JSON is *value*.

    :raises MalformedError: something in it is not as tdefs writes it.
    :raises TdefsError: KEYSTORE_DAMAGED for another version of the format.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise MalformedError("it is not a keystore of tdefs")
    # before the members, which another version may have added to or renamed
    version = fields.read_int(value.get("version"), "version", 1, 2**31)
    if version != VERSION:
        raise KeystoreDamagedError(
            f"the keystore was made by {'an older' if version < VERSION else 'a newer'} tdefs",
            detail=f"it has format version {version}, and this tdefs reads only {VERSION}",
            hint="use the tdefs that wrote the keystore; to come to this one, copy the files from its mount into a"
            " volume that this one has made"
            if version < VERSION
            else "use the tdefs that wrote the keystore, or a newer one",
        )
    members = fields.read_object(value, "keystore", ("format", "version", *MEMBERS[Document]))
    document = Document(**{name: read(members[name], name) for name, read in MEMBERS[Document].items()})
    _check_references(document)
    return document


# --- what the members are


def _text(pattern: re.Pattern[str]) -> _Read:
    return partial(fields.read_text, pattern=pattern)


def _number(low: int, high: int) -> _Read:
    return partial(fields.read_int, low=low, high=high)


def _bytes(size: int | None) -> _Read:
    return partial(fields.read_hex, size=size)


def _optional(read: _Read) -> _Read:
    return partial(fields.read_optional, read=read)


def _entry(kind: type) -> _Read:
    """Return what reads an object with the members of *kind*."""

    def read(value: Any, where: str) -> Any:
        members = fields.read_object(value, where, MEMBERS[kind])
        return kind(**{name: one(members[name], f"{where}.{name}") for name, one in MEMBERS[kind].items()})

    return read


def _list(kind: type) -> _Read:
    return partial(fields.read_list, read_item=_entry(kind))


def _read_label(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_label(value):
        raise MalformedError(f"{where}: expected a printable text of at most {MAX_LABEL_CHARACTERS} characters")
    return value


def _read_params(value: Any, where: str) -> dict[str, str | int]:
    """Return texts and integers by name; what they mean, and their bounds, is for the protector to check."""
    if not isinstance(value, dict):
        raise MalformedError(f"{where}: expected an object")
    for name, member in value.items():
        fields.read_text(name, f"{where}: a name", KEY_NAME)
        if isinstance(member, str):
            # this also keeps out lone surrogates, which cannot be encoded again
            if len(member) > _MAX_PARAMETER_CHARACTERS or not member.isprintable():
                raise MalformedError(f"{where}.{name}: expected a printable text of moderate length")
        else:
            fields.read_int(member, f"{where}.{name}", 0, _MAX_COUNT)
    return value


def _read_data_key(value: Any, where: str) -> DataKeyEntry:
    entry: DataKeyEntry = _entry(DataKeyEntry)(value, where)
    numbers = [one.round for one in entry.rounds]
    if numbers != sorted(set(numbers)):
        raise MalformedError(f"{where}.rounds: expected ascending rounds")
    return entry


def _read_round(value: Any, where: str) -> RoundEntry:
    entry: RoundEntry = _entry(RoundEntry)(value, where)
    wrapped = {"wrapped_by": entry.wrapped_by, "wrapped": entry.wrapped}
    for name, found in wrapped.items():
        if found is not None and entry.state == DESTROYED:
            raise MalformedError(f"{where}.{name}: expected nothing wrapped in a destroyed round")
        if found is None and entry.state != DESTROYED:
            raise MalformedError(f"{where}.{name}: is missing, and the round is not destroyed")
    if (entry.revoked is not None) != (entry.state in (REVOKED, DESTROYED)):
        raise MalformedError(f"{where}.revoked: does not fit the state")
    if (entry.destroyed is not None) != (entry.state == DESTROYED):
        raise MalformedError(f"{where}.destroyed: does not fit the state")
    return entry


def _read_volumes(value: Any, where: str) -> tuple[VolumeEntry, ...]:
    # the last one may have been forgotten
    found: tuple[VolumeEntry, ...] = () if value == [] else _list(VolumeEntry)(value, where)
    return found


def _read_path(value: Any, where: str) -> str:
    """Return an absolute path that a system call would accept; bytes that are no UTF-8 are surrogates in it."""
    try:
        fits = isinstance(value, str) and len(os.fsencode(value)) <= _MAX_PATH_BYTES
    except UnicodeEncodeError:
        fits = False
    if fits and value.startswith("/") and "\0" not in value:
        return str(value)
    raise MalformedError(f"{where}: expected an absolute path")


def _read_policy(value: Any, where: str) -> str:
    return "" if value == "" else _read_path(value, where)


#: The members of each object, in the order in which they are written, and what reads each.
MEMBERS: dict[type, dict[str, _Read]] = {
    Document: {
        "volume_id": _bytes(VOLUME_ID_BYTES),
        "created": fields.read_time,
        "revision": _number(1, _MAX_COUNT),
        "volumes": _read_volumes,
        "master_keys": _list(MasterKeyEntry),
        "protectors": _list(ProtectorEntry),
        "data_keys": partial(fields.read_list, read_item=_read_data_key),
        "history": _entry(HistoryAnchor),
        "mac": _bytes(MAC_BYTES),
    },
    VolumeEntry: {
        "id": _text(KEY_NAME),
        "registered": fields.read_time,
        "path": _read_path,
        "device": _number(0, _MAX_NUMBER),
        "inode": _number(0, _MAX_NUMBER),
        "plain_files": fields.read_bool,
        "lowest_suite": _number(FIRST_SUITE, _MAX_SUITE),
        "policy_digest": _text(_DIGEST),
        "policy": _read_policy,
    },
    MasterKeyEntry: {
        "name": _text(KEY_NAME),
        "created": fields.read_time,
        "current": fields.read_bool,
        "retired": _optional(fields.read_time),
    },
    ProtectorEntry: {
        "id": _text(KEY_NAME),
        "kind": _text(_KIND),
        "label": _read_label,
        "created": fields.read_time,
        "master_key": _text(KEY_NAME),
        "params": _read_params,
        "wrapped": _bytes(None),  # the length depends on the kind: a key server's ciphertext is longer than ours
        "wrapped_master_key": _bytes(WRAPPED_BYTES),
        "kept_key": _bytes(WRAPPED_BYTES),
    },
    DataKeyEntry: {
        "name": _text(KEY_NAME),
        "default": fields.read_bool,
        "rounds": partial(fields.read_list, read_item=_read_round),
    },
    RoundEntry: {
        "round": _number(1, MAX_ROUND),
        "algorithm": partial(fields.read_choice, choices=ALGORITHMS),
        "created": fields.read_time,
        "state": partial(fields.read_choice, choices=STATES),
        "revoked": _optional(fields.read_time),
        "destroyed": _optional(fields.read_time),
        "fingerprint": _bytes(FINGERPRINT_BYTES),
        "wrapped_by": _optional(_text(KEY_NAME)),
        "wrapped": _optional(_bytes(WRAPPED_BYTES)),
    },
    HistoryAnchor: {
        "wrapped_by": _text(KEY_NAME),
        "wrapped": _bytes(WRAPPED_BYTES),
        "count": _number(0, _MAX_COUNT),
        "mac": _bytes(MAC_BYTES),
    },
}


# --- what they have to do with one another


def _check_references(document: Document) -> None:
    """Raise MalformedError unless names are unique, the marks are set once and every named key is there."""
    _check_unique("master_keys", document.master_keys, lambda entry: entry.name)
    _check_unique("protectors", document.protectors, lambda entry: entry.id)
    _check_unique("data_keys", document.data_keys, lambda entry: entry.name)
    _check_unique("volumes", document.volumes, lambda entry: entry.id)
    if sum(entry.current for entry in document.master_keys) != 1:
        raise MalformedError("master_keys: expected exactly one that is current")
    if sum(entry.default for entry in document.data_keys) != 1:
        raise MalformedError("data_keys: expected exactly one that is the default")
    # A new master key wraps everything anew, so nothing is left to the old ones.
    current = document.current_master_key().name
    if any(entry.master_key != current for entry in document.protectors):
        raise MalformedError("protectors: one wraps a master key that is not there or not current")
    wrapping = {entry.wrapped_by for key in document.data_keys for entry in key.rounds} - {None}
    if wrapping - {current}:
        raise MalformedError("data_keys: one is wrapped by a master key that is not there or not current")
    if document.history.wrapped_by != current:
        raise MalformedError("history: its key is wrapped by a master key that is not there or not current")


def _check_unique(where: str, entries: Iterable[Any], name_of: Callable[[Any], str]) -> None:
    names = [name_of(entry) for entry in entries]
    if len(names) != len(set(names)):
        raise MalformedError(f"{where}: a name is there twice")

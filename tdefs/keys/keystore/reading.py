"""The document of a keystore, read from JSON: every member is there, of the right type, and within its bounds."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
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

#: The members of each object, in the order in which they are written.
MEMBERS: dict[type, tuple[str, ...]] = {
    Document: (
        *("volume_id", "created", "revision", "volumes", "master_keys", "protectors", "data_keys"),
        *("history", "mac"),
    ),
    VolumeEntry: (
        *("id", "registered", "path", "device", "inode"),
        *("plain_files", "lowest_suite", "policy_digest", "policy"),
    ),
    MasterKeyEntry: ("name", "created", "current", "retired"),
    ProtectorEntry: (
        *("id", "kind", "label", "created", "master_key", "params"),
        *("wrapped", "wrapped_master_key", "kept_key"),
    ),
    DataKeyEntry: ("name", "default", "rounds"),
    RoundEntry: (
        *("round", "algorithm", "created", "state", "revoked", "destroyed", "fingerprint"),
        *("wrapped_by", "wrapped"),
    ),
    HistoryAnchor: ("wrapped_by", "wrapped", "count", "mac"),
}


def read_document(value: Any) -> Document:
    """Return the document of a keystore file, whose JSON is *value*.

    :raises MalformedError: something in it is not as tdefs writes it.
    :raises TdefsError: KEYSTORE_DAMAGED for another version of the format.
    """
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise MalformedError("it is no keystore of tdefs")
    # Before the members, which another version may have added to or renamed.
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
    document = Document(
        volume_id=fields.read_hex(members["volume_id"], "volume_id", VOLUME_ID_BYTES),
        created=fields.read_time(members["created"], "created"),
        master_keys=fields.read_list(members["master_keys"], "master_keys", _read_master_key),
        protectors=fields.read_list(members["protectors"], "protectors", _read_protector),
        data_keys=fields.read_list(members["data_keys"], "data_keys", _read_data_key),
        mac=fields.read_hex(members["mac"], "mac", MAC_BYTES),
        revision=fields.read_int(members["revision"], "revision", 1, _MAX_COUNT),
        history=_read_history(members["history"], "history"),
        volumes=_read_volumes(members["volumes"], "volumes"),
    )
    _check_references(document)
    return document


def _read_master_key(value: Any, where: str) -> MasterKeyEntry:
    members = fields.read_object(value, where, MEMBERS[MasterKeyEntry])
    return MasterKeyEntry(
        name=fields.read_text(members["name"], f"{where}.name", KEY_NAME),
        created=fields.read_time(members["created"], f"{where}.created"),
        current=fields.read_bool(members["current"], f"{where}.current"),
        retired=fields.read_optional(members["retired"], f"{where}.retired", fields.read_time),
    )


def _read_protector(value: Any, where: str) -> ProtectorEntry:
    members = fields.read_object(value, where, MEMBERS[ProtectorEntry])
    return ProtectorEntry(
        id=fields.read_text(members["id"], f"{where}.id", KEY_NAME),
        kind=fields.read_text(members["kind"], f"{where}.kind", _KIND),
        created=fields.read_time(members["created"], f"{where}.created"),
        master_key=fields.read_text(members["master_key"], f"{where}.master_key", KEY_NAME),
        params=_read_params(members["params"], f"{where}.params"),
        # The length is the kind's affair: a key server's ciphertext is longer than ours.
        wrapped=fields.read_hex(members["wrapped"], f"{where}.wrapped"),
        label=_read_label(members["label"], f"{where}.label"),
        wrapped_master_key=fields.read_hex(
            members["wrapped_master_key"], f"{where}.wrapped_master_key", WRAPPED_BYTES
        ),
        kept_key=fields.read_hex(members["kept_key"], f"{where}.kept_key", WRAPPED_BYTES),
    )


def _read_label(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_label(value):
        raise MalformedError(f"{where}: expected a printable text of at most {MAX_LABEL_CHARACTERS} characters")
    return value


def _read_params(value: Any, where: str) -> dict[str, str | int]:
    """Return texts and integers by name; what they mean and their bounds are the protector's to check."""
    if not isinstance(value, dict):
        raise MalformedError(f"{where}: expected an object")
    for name, member in value.items():
        fields.read_text(name, f"{where}: a name", KEY_NAME)
        if isinstance(member, str):
            # Also keeps out lone surrogates, which cannot be encoded again.
            if len(member) > _MAX_PARAMETER_CHARACTERS or not member.isprintable():
                raise MalformedError(f"{where}.{name}: expected a printable text of moderate length")
        else:
            fields.read_int(member, f"{where}.{name}", 0, _MAX_COUNT)
    return value


def _read_data_key(value: Any, where: str) -> DataKeyEntry:
    members = fields.read_object(value, where, MEMBERS[DataKeyEntry])
    entry = DataKeyEntry(
        name=fields.read_text(members["name"], f"{where}.name", KEY_NAME),
        default=fields.read_bool(members["default"], f"{where}.default"),
        rounds=fields.read_list(members["rounds"], f"{where}.rounds", _read_round),
    )
    numbers = [round_entry.round for round_entry in entry.rounds]
    if numbers != sorted(set(numbers)):
        raise MalformedError(f"{where}.rounds: expected ascending rounds")
    return entry


def _read_round(value: Any, where: str) -> RoundEntry:
    members = fields.read_object(value, where, MEMBERS[RoundEntry])
    state = fields.read_choice(members["state"], f"{where}.state", STATES)
    entry = RoundEntry(
        round=fields.read_int(members["round"], f"{where}.round", 1, MAX_ROUND),
        algorithm=fields.read_choice(members["algorithm"], f"{where}.algorithm", ALGORITHMS),
        created=fields.read_time(members["created"], f"{where}.created"),
        state=state,
        wrapped_by=None,
        wrapped=None,
        fingerprint=fields.read_hex(members["fingerprint"], f"{where}.fingerprint", FINGERPRINT_BYTES),
        revoked=fields.read_optional(members["revoked"], f"{where}.revoked", fields.read_time),
        destroyed=fields.read_optional(members["destroyed"], f"{where}.destroyed", fields.read_time),
    )
    if state != DESTROYED:
        entry = replace(
            entry,
            wrapped_by=fields.read_text(members["wrapped_by"], f"{where}.wrapped_by", KEY_NAME),
            wrapped=fields.read_hex(members["wrapped"], f"{where}.wrapped", WRAPPED_BYTES),
        )
    elif members["wrapped_by"] is not None or members["wrapped"] is not None:
        raise MalformedError(f"{where}: expected nothing wrapped in a destroyed round")
    if (entry.revoked is not None) != (state in (REVOKED, DESTROYED)):
        raise MalformedError(f"{where}.revoked: does not fit the state")
    if (entry.destroyed is not None) != (state == DESTROYED):
        raise MalformedError(f"{where}.destroyed: does not fit the state")
    return entry


def _read_history(value: Any, where: str) -> HistoryAnchor:
    members = fields.read_object(value, where, MEMBERS[HistoryAnchor])
    return HistoryAnchor(
        wrapped_by=fields.read_text(members["wrapped_by"], f"{where}.wrapped_by", KEY_NAME),
        wrapped=fields.read_hex(members["wrapped"], f"{where}.wrapped", WRAPPED_BYTES),
        count=fields.read_int(members["count"], f"{where}.count", 0, _MAX_COUNT),
        mac=fields.read_hex(members["mac"], f"{where}.mac", MAC_BYTES),
    )


def _read_volumes(value: Any, where: str) -> tuple[VolumeEntry, ...]:
    # the last one may have been forgotten
    return () if value == [] else fields.read_list(value, where, _read_volume)


def _read_volume(value: Any, where: str) -> VolumeEntry:
    members = fields.read_object(value, where, MEMBERS[VolumeEntry])
    return VolumeEntry(
        id=fields.read_text(members["id"], f"{where}.id", KEY_NAME),
        registered=fields.read_time(members["registered"], f"{where}.registered"),
        path=_read_path(members["path"], f"{where}.path"),
        device=fields.read_int(members["device"], f"{where}.device", 0, _MAX_NUMBER),
        inode=fields.read_int(members["inode"], f"{where}.inode", 0, _MAX_NUMBER),
        plain_files=fields.read_bool(members["plain_files"], f"{where}.plain_files"),
        lowest_suite=fields.read_int(members["lowest_suite"], f"{where}.lowest_suite", FIRST_SUITE, _MAX_SUITE),
        policy_digest=fields.read_text(members["policy_digest"], f"{where}.policy_digest", _DIGEST),
        policy=_read_path(members["policy"], f"{where}.policy") if members["policy"] != "" else "",
    )


def _read_path(value: Any, where: str) -> str:
    """Return an absolute path that a system call would take; bytes that are no UTF-8 are surrogates in it."""
    try:
        fits = isinstance(value, str) and len(os.fsencode(value)) <= _MAX_PATH_BYTES
    except UnicodeEncodeError:
        fits = False
    if fits and value.startswith("/") and "\0" not in value:
        return str(value)
    raise MalformedError(f"{where}: expected an absolute path")


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

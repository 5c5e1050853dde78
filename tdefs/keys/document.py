"""The keystore as a document: what it contains, and its form as text, version 1.

The text is a JSON object, indented for a person to read, and then one last line::

    sha256:<64 lower-case hexadecimal digits>

over all bytes before that line. The checksum keeps no attacker out; it tells damage (a flipped bit, a
truncation, something appended) from a wrong secret before any secret is asked for. What keeps an attacker
out is ``mac``, over :meth:`Document.signed_bytes`, which only the master key can make (see keystore.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256, Hash

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.hierarchy import ALGORITHMS, KEY_NAME, MAX_ROUND, VOLUME_ID_BYTES
from tdefs.keys.wrapping import WRAPPED_BYTES

FORMAT = "tdefs keystore"
VERSION = 1
MAX_BYTES = 1 << 20
MAC_BYTES = 32
ACTIVE = "active"
STATES = frozenset({ACTIVE})

_MEMBERS = ("format", "version", "volume_id", "created", "master_keys", "protectors", "data_keys", "mac")
_CHECKSUM_BYTES = len("sha256:") + 64 + 1
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,30}", re.ASCII)
_MAX_PARAMETER_CHARACTERS = 4096


@dataclass(frozen=True)
class MasterKeyEntry:
    """A master key: known by name; its secret is in the entries of the protectors."""

    name: str
    created: datetime
    current: bool


@dataclass(frozen=True)
class ProtectorEntry:
    """One master key, wrapped by one protector; ``params`` is what the kind needs to unwrap it, no secret."""

    id: str
    kind: str
    created: datetime
    master_key: str
    params: Mapping[str, str | int]
    wrapped: bytes


@dataclass(frozen=True)
class RoundEntry:
    """One round of a data key, wrapped by the master key ``wrapped_by``."""

    round: int
    algorithm: str
    created: datetime
    state: str
    wrapped_by: str
    wrapped: bytes


@dataclass(frozen=True)
class DataKeyEntry:
    """A data key with its rounds, oldest first; exactly one data key of a keystore is the default."""

    name: str
    default: bool
    rounds: tuple[RoundEntry, ...]


@dataclass(frozen=True)
class Document:
    """Everything in a keystore file. ``mac`` is 32 bytes, made with the current master key."""

    volume_id: bytes
    created: datetime
    master_keys: tuple[MasterKeyEntry, ...]
    protectors: tuple[ProtectorEntry, ...]
    data_keys: tuple[DataKeyEntry, ...]
    mac: bytes

    def current_master_key(self) -> MasterKeyEntry:
        """Return the one master key that is current."""
        return next(entry for entry in self.master_keys if entry.current)

    def default_data_key(self) -> DataKeyEntry:
        """Return the one data key that is the default."""
        return next(entry for entry in self.data_keys if entry.default)

    def signed_bytes(self) -> bytes:
        """Return what the MAC is over: the JSON without ``mac``, members sorted, no white space, ASCII."""
        body = _plain(replace(self, mac=b""))
        del body["mac"]
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def serialise(document: Document) -> bytes:
    """Return the keystore file with this document, checksum line and all."""
    body = json.dumps(_plain(document), indent=2, ensure_ascii=True).encode("ascii") + b"\n"
    return body + _checksum_line(body)


def parse(data: bytes) -> Document:
    """Read a keystore file. Raises TdefsError(KEYSTORE_DAMAGED) for every other sequence of bytes."""
    body, checksum_line = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) > MAX_BYTES or checksum_line != _checksum_line(body):
        raise damaged("its content does not match its checksum")
    try:
        return _read_document(fields.read_json(body))
    except MalformedError as error:
        raise damaged(str(error)) from None


def damaged(detail: str) -> TdefsError:
    """Return the error for a keystore that is not as it was written."""
    return TdefsError(
        Exit.KEYSTORE_DAMAGED,
        "the keystore is damaged",
        detail=detail,
        hint="restore the keystore from a backup; the secret that unlocks it is not at fault",
    )


def _checksum_line(body: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(body)
    return f"sha256:{digest.finalize().hex()}\n".encode("ascii")


def _plain(value: Any) -> Any:
    """Return a document or a part of it as JSON's own types."""
    match value:
        case Document():
            return {"format": FORMAT, "version": VERSION} | _plain(vars(value))
        case MasterKeyEntry() | ProtectorEntry() | RoundEntry() | DataKeyEntry():
            return _plain(vars(value))
        case dict():
            return {name: _plain(member) for name, member in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case bytes():
            return value.hex()
        case datetime():
            return fields.show_time(value)
    return value


def _read_document(value: Any) -> Document:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise MalformedError("it is no keystore of tdefs")
    # Before the members, which another version may have added to or renamed.
    version = fields.read_int(value.get("version"), "version", 1, 2**31)
    if version != VERSION:
        raise TdefsError(
            Exit.KEYSTORE_DAMAGED,
            f"the keystore has format version {version}, and this tdefs reads only version {VERSION}",
            hint="use the version of tdefs that wrote the keystore, or a newer one",
        )
    members = fields.read_object(value, "keystore", _MEMBERS)
    document = Document(
        volume_id=fields.read_hex(members["volume_id"], "volume_id", VOLUME_ID_BYTES),
        created=fields.read_time(members["created"], "created"),
        master_keys=fields.read_list(members["master_keys"], "master_keys", _read_master_key),
        protectors=fields.read_list(members["protectors"], "protectors", _read_protector),
        data_keys=fields.read_list(members["data_keys"], "data_keys", _read_data_key),
        mac=fields.read_hex(members["mac"], "mac", MAC_BYTES),
    )
    _check_references(document)
    return document


def _read_master_key(value: Any, where: str) -> MasterKeyEntry:
    members = fields.read_object(value, where, ("name", "created", "current"))
    return MasterKeyEntry(
        name=fields.read_text(members["name"], f"{where}.name", KEY_NAME),
        created=fields.read_time(members["created"], f"{where}.created"),
        current=fields.read_bool(members["current"], f"{where}.current"),
    )


def _read_protector(value: Any, where: str) -> ProtectorEntry:
    members = fields.read_object(value, where, ("id", "kind", "created", "master_key", "params", "wrapped"))
    return ProtectorEntry(
        id=fields.read_text(members["id"], f"{where}.id", KEY_NAME),
        kind=fields.read_text(members["kind"], f"{where}.kind", _KIND),
        created=fields.read_time(members["created"], f"{where}.created"),
        master_key=fields.read_text(members["master_key"], f"{where}.master_key", KEY_NAME),
        params=_read_params(members["params"], f"{where}.params"),
        # The length is the kind's affair: a key server's ciphertext is longer than ours.
        wrapped=fields.read_hex(members["wrapped"], f"{where}.wrapped"),
    )


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
            fields.read_int(member, f"{where}.{name}", 0, 2**63 - 1)
    return value


def _read_data_key(value: Any, where: str) -> DataKeyEntry:
    members = fields.read_object(value, where, ("name", "default", "rounds"))
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
    members = fields.read_object(value, where, ("round", "algorithm", "created", "state", "wrapped_by", "wrapped"))
    return RoundEntry(
        round=fields.read_int(members["round"], f"{where}.round", 1, MAX_ROUND),
        algorithm=fields.read_choice(members["algorithm"], f"{where}.algorithm", ALGORITHMS),
        created=fields.read_time(members["created"], f"{where}.created"),
        state=fields.read_choice(members["state"], f"{where}.state", STATES),
        wrapped_by=fields.read_text(members["wrapped_by"], f"{where}.wrapped_by", KEY_NAME),
        wrapped=fields.read_hex(members["wrapped"], f"{where}.wrapped", WRAPPED_BYTES),
    )


def _check_references(document: Document) -> None:
    """Raise MalformedError unless names are unique, the marks are set once and every named key is there."""
    masters = {entry.name for entry in document.master_keys}
    _check_unique("master_keys", document.master_keys, lambda entry: entry.name)
    _check_unique("protectors", document.protectors, lambda entry: entry.id)
    _check_unique("data_keys", document.data_keys, lambda entry: entry.name)
    if sum(entry.current for entry in document.master_keys) != 1:
        raise MalformedError("master_keys: expected exactly one that is current")
    if sum(entry.default for entry in document.data_keys) != 1:
        raise MalformedError("data_keys: expected exactly one that is the default")
    if not masters.issuperset(entry.master_key for entry in document.protectors):
        raise MalformedError("protectors: one wraps a master key that is not there")
    if not masters.issuperset(entry.wrapped_by for key in document.data_keys for entry in key.rounds):
        raise MalformedError("data_keys: one is wrapped by a master key that is not there")


def _check_unique(where: str, entries: Iterable[Any], name_of: Callable[[Any], str]) -> None:
    names = [name_of(entry) for entry in entries]
    if len(names) != len(set(names)):
        raise MalformedError(f"{where}: a name is there twice")

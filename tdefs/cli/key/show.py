"""The subcommands of ``tdefs key`` that need no secret: list, show."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_users import shown_unseen, users_of
from tdefs.cli.common.output import print_fields, print_json, print_line, print_table
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.unlocking import KeystoreAccess, read_keystore
from tdefs.errors import Exit
from tdefs.keys.fields import show_time
from tdefs.keys.keystore.entries import VERSION, DataKeyEntry, Document, RoundEntry
from tdefs.keys.keystore.key_changes import find_data_key
from tdefs.offline.describing import describe_all

_LIST_HEADERS = ("data key", "round", "state", "algorithm", "created", "fingerprint", "wrapped by", "")
_SHOW_HEADERS = ("round", "state", "algorithm", "created", "revoked", "destroyed", "wrapped by", "files")


@dataclass(frozen=True, slots=True)
class ListOptions:
    """Of ``tdefs key list``."""

    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


@dataclass(frozen=True, slots=True)
class ShowOptions:
    """Of ``tdefs key show``."""

    name: str
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


def run_list(_invocation: Invocation, options: ListOptions) -> int:
    """``tdefs key list``."""
    document = read_keystore(options.access, options.volume.find()).document
    if options.json:
        print_json(_as_object(document))
        return Exit.OK
    rows = [
        (
            *(entry.name, one.round, one.state, one.algorithm, show_time(one.created)),
            *(one.fingerprint.hex() or None, one.wrapped_by, "default" if entry.default else ""),
        )
        for entry in document.data_keys
        for one in entry.rounds
    ]
    print_table(_LIST_HEADERS, rows, numbers=("round",))
    print_line()
    masters = [
        (one.name, "current" if one.current else "retired", show_time(one.created), _time(one.retired))
        for one in document.master_keys
    ]
    print_table(("master key", "state", "created", "retired"), masters)
    return Exit.OK


def run_show(_invocation: Invocation, options: ShowOptions) -> int:
    """``tdefs key show``."""
    volume = options.volume.find()
    keystore = read_keystore(options.access, volume)
    document = keystore.document
    entry = find_data_key(document, options.name)
    users = users_of(document, keystore.path, volume)
    files = Counter(
        found.round for one in users.seen for found in describe_all(one) if found.data_key == entry.name
    )
    for unseen in users.unseen:
        print(f"tdefs: warning: files are not counted of {shown_unseen(unseen)}", file=sys.stderr)
    if options.json:
        shown = _key_object(entry)
        for one in shown["rounds"]:
            one["files"] = files[one["round"]]
        shown["unseen_volumes"] = [one.entry.id for one in users.unseen]
        print_json(shown)
        return Exit.OK
    print_fields([("data key", entry.name), ("default", "yes" if entry.default else "no")])
    print_line()
    rows = [
        (
            *(one.round, one.state, one.algorithm, show_time(one.created), _time(one.revoked)),
            *(_time(one.destroyed), one.wrapped_by, files[one.round]),
        )
        for one in entry.rounds
    ]
    print_table(_SHOW_HEADERS, rows, numbers=("round", "files"))
    return Exit.OK


def _time(time: datetime | None) -> str | None:
    return None if time is None else show_time(time)


def _as_object(document: Document) -> dict[str, Any]:
    """Return the JSON object of all keys; its keys are part of the interface."""
    return {
        "version": VERSION,
        "revision": document.revision,
        "master_keys": [
            {
                "name": one.name,
                "current": one.current,
                "created": show_time(one.created),
                "retired": _time(one.retired),
            }
            for one in document.master_keys
        ],
        "data_keys": [_key_object(entry) for entry in document.data_keys],
    }


def _key_object(entry: DataKeyEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "default": entry.default,
        "rounds": [_round_object(one) for one in entry.rounds],
    }


def _round_object(one: RoundEntry) -> dict[str, Any]:
    return {
        "round": one.round,
        "state": one.state,
        "algorithm": one.algorithm,
        "created": show_time(one.created),
        "revoked": _time(one.revoked),
        "destroyed": _time(one.destroyed),
        "fingerprint": one.fingerprint.hex() or None,
        "wrapped_by": one.wrapped_by,
    }

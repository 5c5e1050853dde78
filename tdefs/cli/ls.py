"""``tdefs ls``: which files are encrypted, and with which key; asks the files themselves.

Only the targets of symbolic links need a secret, or a daemon that has it. Nobody is asked for one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.link_places import link_judge, trusted_mounts
from tdefs.cli.common.output import print_json, print_table
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access, read_keystore, unlock
from tdefs.control import ask_status
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import Document
from tdefs.offline.reader import ENCRYPTED, LINK, PLAIN, UNREADABLE, Description, describe_all
from tdefs.text import printable
from tdefs.volume.believed import shown
from tdefs.volume.description import Volume

_YES_NO = {ENCRYPTED: "yes", PLAIN: "no"}
_HEADERS = ("path", "kind", "encrypted", "data key", "round", "algorithm", "size")


def register(subparsers: Subcommands) -> None:
    """Add the command ``ls``."""
    parser = subparsers.add_parser(
        "ls",
        help="list the files of a volume and how each one is encrypted",
        description="Lists the files of a volume as they are on the disk. This needs no key, and checks only "
        "what can be checked without one: 'tdefs verify' checks the rest. The keystore says which "
        "data keys were destroyed; files of these are unreadable. The targets of symbolic links "
        "are encrypted. They are shown while the volume is mounted, or if the command line says "
        "what unlocks the keystore; else the list has (encrypted).",
    )
    add_volume(parser)
    add_keystore_access(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


def _run(invocation: Invocation, options: _Options) -> int:
    volume = options.volume.find()
    document = _document(options.access, volume)
    destroyed = {} if document is None else document.destroyed_rounds()
    known = unlock(options.access, volume) if options.access.secret.is_given else None
    ring, believed = (None, shown(volume, document)) if known is None else (known.unlocked.ring, known.believed)
    leads_out = link_judge(invocation.config, volume)
    found = list(describe_all(volume, destroyed, believed, ring))
    if ring is None:
        found = list(map(_shown_by_daemon(volume), found))
    if options.json:
        print_json([_as_object(one, leads_out) for one in found])
        return Exit.OK
    # the last column has the error of a damaged file, or the target of a link
    rows = [
        (
            one.path,
            one.kind,
            _YES_NO.get(one.state, one.state),
            one.data_key,
            one.round,
            one.algorithm,
            one.size,
            _remark(one, leads_out),
        )
        for one in found
    ]
    print_table((*_HEADERS, ""), rows, numbers=("round", "size"))
    return Exit.OK


def _shown_by_daemon(volume: Volume) -> Callable[[Description], Description]:
    """Return a function that adds the target to the description of a link, if a daemon serves the volume."""
    mounts = [mount.mountpoint for mount in trusted_mounts(volume) if mount.backing == volume.backing]
    # reading a link through a daemon that does not answer would wait for ever
    if not mounts or ask_status(volume) is None:
        return lambda one: one

    def described(one: Description) -> Description:
        if one.kind == LINK and one.error is None:
            with suppress(OSError):
                return replace(one, target=os.fspath((mounts[0] / one.path).readlink()))
        return one

    return described


def _document(access: KeystoreAccess, volume: Volume) -> Document | None:
    """Return the keystore's document; if the keystore was not named and cannot be read, print a warning."""
    try:
        return read_keystore(access, volume).document
    except TdefsError as error:
        if access.keystore is not None:
            raise
        print(
            f"tdefs: warning: {printable(error.message)}\n"
            "DETAIL:  files whose data key was destroyed are listed like all encrypted ones\n"
            "HINT:  name the keystore with --keystore, and list as a user who may read it",
            file=sys.stderr,
        )
    return None


def _remark(one: Description, leads_out: Callable[[str, str], bool]) -> str:
    """Return the text after the size of a file: the error, or the target of a link."""
    if one.error is not None or one.kind != LINK:
        return one.error or ""
    if one.target is None:
        return "-> (encrypted)"
    return f"-> {one.target}" + (" (on no tdefs volume)" if leads_out(one.path, one.target) else "")


def _as_object(one: Description, leads_out: Callable[[str, str], bool]) -> dict[str, Any]:
    """Return the JSON object of one file; its keys are part of the interface."""
    found = asdict(one)
    error, target = found.pop("error"), found.pop("target")
    if one.kind == LINK:
        found["target"] = target
        found["leads_out"] = leads_out(one.path, target) if target is not None else None
    # also one whose key was destroyed: it is not in the clear
    found["encrypted"] = one.state == ENCRYPTED or (one.state == UNREADABLE and one.algorithm is not None)
    return found if error is None else found | {"error": error}

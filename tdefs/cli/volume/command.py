"""``tdefs volume``: which volumes a keystore knows, and what to do after one was moved, restored or copied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.keystore_users import users_of
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.secret_options import add_secret
from tdefs.cli.common.unlocking import (
    KeystoreAccess,
    add_config,
    add_keystore,
    add_keystore_access,
    read_keystore,
)
from tdefs.cli.volume.copied import CopiedOptions, run_copied
from tdefs.cli.volume.places import AddOptions, MovedOptions, is_in_use, run_add, run_moved
from tdefs.errors import Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.keystore.changes import find_volume, forget_volume
from tdefs.keys.keystore.entries import Document, VolumeEntry
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.registry import Unseen, look, recognised


def register(subparsers: Subcommands) -> None:
    """Add the command ``volume`` with its subcommands."""
    parser = subparsers.add_parser(
        "volume", help="list the volumes of a keystore; register one that was moved, restored or copied"
    )
    commands = subcommands(parser)

    listing = commands.add_parser("list", help="list the volumes that use the keystore; needs no secret")
    add_volume(listing)
    add_keystore(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    takes(listing, _ListOptions, _list)

    moved = commands.add_parser(
        "moved",
        help="say that the volume is here now, and no longer at its old place",
        description="Changes the volume's place in the keystore to this one. It is refused while the volume "
        "is still at its old place. With --keystore the volume remembers that keystore from then "
        "on.",
    )
    add_volume(moved, help="the volume that is here now")
    moved.add_argument(
        "--from", metavar="ID", dest="old", help="the old volume, such as vol_1, if several are gone"
    )
    add_keystore_access(moved)
    takes(moved, MovedOptions, run_moved)

    copied = commands.add_parser(
        "copied",
        help="say that this is a second volume, and copy the keystore for it",
        description="Copies the keystore, with its keys and protectors. The volume, which must not be "
        "mounted, uses the copy from then on. Later changes of one keystore do not reach the "
        "other.",
    )
    add_volume(copied, help="the volume that is here now")
    copied.add_argument("--keystore", metavar="FILE", type=Path, help="the place of its new keystore")
    copied.add_argument(
        "--existing-keystore",
        metavar="FILE",
        type=Path,
        help="the keystore to copy; default: the one that the volume remembers",
    )
    add_secret(copied, recovery=True)
    add_config(copied)
    takes(copied, CopiedOptions, run_copied)

    add = commands.add_parser(
        "add",
        help="say that this is a second volume that shares the keystore",
        description="Adds a volume to the keystore, such as a copy that will stay. With --keystore the volume "
        "remembers that keystore from then on.",
    )
    add_volume(add, help="the volume that is here now")
    add_keystore_access(add)
    takes(add, AddOptions, run_add)

    forget = commands.add_parser("forget", help="say that a volume no longer exists")
    forget.add_argument("known", metavar="ID", help="such as vol_2")
    add_volume(forget, argument=False)
    add_keystore_access(forget)
    takes(forget, _ForgetOptions, _forget)


@dataclass(frozen=True, slots=True)
class _ListOptions:
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


@dataclass(frozen=True, slots=True)
class _ForgetOptions:
    known: str
    volume: VolumeChoice
    access: KeystoreAccess


def _list(_invocation: Invocation, options: _ListOptions) -> int:
    volume = options.volume.find()
    keystore = read_keystore(options.access, volume)
    document = keystore.document
    known = recognised(document, volume)
    found = [_as_object(document, entry, volume if entry is known else None) for entry in document.volumes]
    places = {one["path"] for one in found} | {str(volume.backing)}
    found += [
        {
            "id": None,
            "path": str(one.backing),
            "registered": None,
            "seen": True,
            "reason": "not known to the keystore",
        }
        for one in users_of(document, keystore.path, volume).seen
        if str(one.backing) not in places
    ]
    if options.json:
        print_json(found)
        return Exit.OK
    print_table(
        ("id", "backing directory", "registered", ""),
        [
            (
                one["id"],
                printable(one["path"]),
                one["registered"],
                one["reason"] or ("there" if one["seen"] else ""),
            )
            for one in found
        ],
    )
    return Exit.OK


def _as_object(document: Document, entry: VolumeEntry, here: Volume | None) -> dict[str, Any]:
    """Return the JSON object of a volume, which is the one that the command names if that is *here*.

    Its keys are part of the interface.
    """
    found = look(document, entry) if here is None else here
    return {
        "id": entry.id,
        "path": entry.path,
        "registered": show_time(entry.registered),
        "seen": isinstance(found, Volume),
        "reason": found.reason if isinstance(found, Unseen) else None,
    }


def _forget(_invocation: Invocation, options: _ForgetOptions) -> int:
    volume = options.volume.find()
    with changing(options.access, volume) as change:
        entry = find_volume(change.document, options.known)
        if is_in_use(change, entry):
            raise TdefsError(
                Exit.VOLUME_REGISTERED,
                f'volume {entry.id} is at "{printable(entry.path)}", and uses the keystore',
                hint="remove it first if it is no longer needed; 'tdefs volume copied' gives it one of its own",
            )
        change.save(forget_volume(change.unlocked, entry.id), volume=entry.id, path=printable(entry.path))
        change.tell_revision()
    print_line(f'the keystore does not know {entry.id} at "{printable(entry.path)}" any more')
    return Exit.OK

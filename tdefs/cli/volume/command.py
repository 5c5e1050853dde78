"""``tdefs volume``: which volumes a keystore knows, and what to say after one was moved, restored or copied."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdefs.cli.common.keystore_change import OpenChange, changing
from tdefs.cli.common.keystore_users import users_of, uses
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.place import add_place, volume_of
from tdefs.cli.common.secret_arguments import add_unlock_arguments, secret_from_arguments
from tdefs.cli.common.unlocking import (
    add_config,
    add_keystore_arguments,
    add_keystore_place,
    check_remembered,
    open_recorded,
    read_keystore,
    source_finder,
    use_configured_secret,
)
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.changes import add_volume, find_volume, forget_volume, move_volume
from tdefs.keys.keystore.copy import copy_command_directory, copy_keystore, remove_copy
from tdefs.keys.keystore.entries import Document, VolumeEntry
from tdefs.keys.keystore.file import Unlocked, load_keystore
from tdefs.keys.keystore.wrapped_keys import FIRST_VOLUME
from tdefs.keys.protectors.command_files import command_directory
from tdefs.manifest.state import Binding, adopt
from tdefs.offline.reader import volume_at
from tdefs.text import printable
from tdefs.volume.believed import book_of
from tdefs.volume.description import Volume, exclusive, remembers_truly, save_volume
from tdefs.volume.registry import Unseen, look, place_of, recognised, statements_of
from tdefs.volume.session_record import Session, read_session


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``volume`` with its sub-commands."""
    parser = subparsers.add_parser(
        "volume", help="which volumes a keystore knows, and where: list, moved, copied, add, forget"
    )
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="list the volumes that use the keystore; needs no secret")
    add_place(listing)
    add_keystore_place(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    moved = commands.add_parser(
        "moved",
        help="say that the volume is here now: it was moved, or restored from a backup, and the old one is gone",
        description="Has the keystore know the volume at this place instead of the old one. Refused while the "
        "volume is at the old place still. With --keystore the volume remembers that keystore from then on.",
    )
    _add_backing(moved)
    moved.add_argument(
        "--from", metavar="ID", dest="old", help="which one it was, if several are gone: such as vol_1"
    )
    add_keystore_arguments(moved)
    moved.set_defaults(run=_moved)

    copied = commands.add_parser(
        "copied",
        help="say that this is a second volume, and give it a keystore of its own, a copy of the first one's",
        description="Copies the keystore, with its keys and protectors, and has the volume, which must not be "
        "mounted, use the copy from then on. The two keystores change apart.",
    )
    _add_backing(copied)
    copied.add_argument("--keystore", metavar="FILE", type=Path, help="where its own keystore is to be")
    copied.add_argument(
        "--existing-keystore",
        metavar="FILE",
        type=Path,
        help="the one to copy; default: what the volume remembers",
    )
    add_unlock_arguments(copied, recovery=True)
    add_config(copied)
    copied.set_defaults(run=_copied)

    add = commands.add_parser(
        "add",
        help="say that this is a second volume, which uses the same keystore",
        description="Has the keystore know one volume more, such as a copy that is to stay. With --keystore the "
        "volume remembers that keystore from then on.",
    )
    _add_backing(add)
    add_keystore_arguments(add)
    add.set_defaults(run=_add)

    forget = commands.add_parser("forget", help="say that a volume is no more; not while it is at its place")
    forget.add_argument("known", metavar="ID", help="such as vol_2")
    add_place(forget)
    add_keystore_arguments(forget)
    forget.set_defaults(run=_forget)


def _add_backing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backing", metavar="BACKING|MOUNTPOINT", type=Path)


def _list(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    keystore = read_keystore(args, volume)
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
    if args.json:
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


def _moved(args: argparse.Namespace) -> int:
    volume = volume_at(args.backing)
    with (
        _keystore_remembered(args, volume) as (unmounted, remember),
        changing(args, volume, "volume moved", registers=True) as change,
    ):
        if not change.document.volumes:
            new, id = add_volume(change.unlocked, place_of(volume), statements_of(change.document, volume))
        else:
            id = _old_entry(args, change, volume).id
            new = move_volume(change.unlocked, id, place_of(volume))
        change.save(new, volume=id, path=printable(str(volume.backing)))
        remember(change)
        _take_over(volume, change.unlocked, id, change.path, is_locked=unmounted is not None)
        change.tell_revision(unmounted=unmounted)
    print_line(f'the keystore knows {id} at "{printable(str(volume.backing))}" now')
    return Exit.OK


def _old_entry(args: argparse.Namespace, change: OpenChange, volume: Volume) -> VolumeEntry:
    """Return the entry of the volume that is at the place of *volume* now.

    :raises TdefsError: VOLUME_REGISTERED if it is where it was; USAGE if it may be any of several.
    """
    document = change.document
    known = recognised(document, volume)
    if known is not None:
        return known
    here = [entry for entry in document.volumes if entry.path == str(volume.backing)]
    candidates = [find_volume(document, args.old)] if args.old is not None else here or list(document.volumes)
    gone = [entry for entry in candidates if not _is_in_use(change, entry)]
    if not gone:
        raise TdefsError(
            Exit.VOLUME_REGISTERED,
            f'volume {candidates[0].id} is still at "{printable(candidates[0].path)}", so "{volume.backing}" is a'
            " second one",
            hint=f'"tdefs volume copied {volume.backing} --keystore FILE" gives it a keystore of its own, "tdefs'
            f' volume add {volume.backing}" has both share one; remove the old one first if it is to be no more',
        )
    if len(gone) > 1:
        raise TdefsError(
            Exit.USAGE,
            "which volume was it?",
            detail="\n".join(f'{entry.id} was at "{printable(entry.path)}"' for entry in gone),
            hint="name it with --from",
        )
    return gone[0]


def _add(args: argparse.Namespace) -> int:
    volume = volume_at(args.backing)
    with (
        _keystore_remembered(args, volume) as (unmounted, remember),
        changing(args, volume, "volume add", registers=True) as change,
    ):
        known = recognised(change.document, volume)
        if known is not None:
            raise TdefsError(
                Exit.VOLUME_REGISTERED, f'volume "{volume.backing}" is {known.id}, which the keystore knows'
            )
        for entry in change.document.volumes:
            if entry.path == str(volume.backing):
                raise TdefsError(
                    Exit.VOLUME_REGISTERED,
                    f'the keystore knows {entry.id} at "{volume.backing}", and what is there is another',
                    hint=f'say that it takes the place of the old one: "tdefs volume moved {volume.backing}"',
                )
        new, id = add_volume(change.unlocked, place_of(volume), statements_of(change.document, volume))
        change.save(new, volume=id, path=printable(str(volume.backing)))
        remember(change)
        _take_over(volume, change.unlocked, id, change.path, is_locked=unmounted is not None)
        change.tell_revision(unmounted=unmounted)
    print_line(f'the keystore knows {id} at "{printable(str(volume.backing))}", too')
    return Exit.OK


@contextmanager
def _keystore_remembered(
    args: argparse.Namespace, volume: Volume
) -> Iterator[tuple[Volume | None, Callable[[OpenChange], None]]]:
    """Yield what has the volume remember the keystore that the command line names, if it does.

    The lock is held meanwhile, since nobody else may write the description; the first value is then *volume*.

    :raises TdefsError: VOLUME_IN_USE.
    """
    if args.keystore is None:
        yield None, lambda _change: None
        return
    keystore = args.keystore.absolute()

    def remember(change: OpenChange) -> None:
        save_volume(replace(volume, keystore=keystore), history_key_of(change.unlocked.ring))

    def mend(change: OpenChange) -> None:
        if not remembers_truly(volume, history_key_of(change.unlocked.ring)):
            remember(change)

    if keystore == volume.keystore:
        yield None, mend
        return
    with exclusive(volume):
        yield volume, remember


def _take_over(volume: Volume, unlocked: Unlocked, id: str, keystore: Path, *, is_locked: bool) -> None:
    """Have what a copy has with it, its manifest and the record of its last session, be the volume's own.

    A copy in the middle of a session, or one that was restored, is older than what the history knows: that it is
    meant is said by who gives the secret. One that is mounted has its own session.

    :param is_locked: whether the caller holds the volume's lock.
    """
    binding = Binding.of(volume, unlocked.ring, keystore, id)
    last: Session | None = None
    try:
        with nullcontext() if is_locked else exclusive(volume):
            adopt(binding, binding)
            last = read_session(volume)
            if last is None or not last.is_authentic(history_key_of(unlocked.ring)):
                return
            if last.clean and last.volume == id:
                return
            fault = book_of(volume, id, unlocked, keystore).take_over(last)
    except TdefsError as error:
        if error.exit_code is not Exit.VOLUME_IN_USE:
            raise
        return
    except OSError as error:
        fault = f"the record of its session cannot be written: {error.strerror}"
    if last is not None and last.clean and not fault:
        return
    print(
        f"tdefs: warning: {fault}, and what its last session left half made will count as damaged"
        if fault
        else "tdefs: its last session did not end: the next mount empties files whose header is zero, as after a"
        " crash",
        file=sys.stderr,
    )


def _copied(args: argparse.Namespace) -> int:
    volume = volume_at(args.backing)
    settings = load_config(args.config).for_backing(volume.backing)
    place = args.keystore or settings.keystore
    if place is None:
        raise TdefsError(
            Exit.USAGE,
            "where is its own keystore to be?",
            detail="neither the command line nor the configuration names a place",
            hint=f"tdefs volume copied {volume.backing} --keystore FILE",
        )
    place = place.absolute()
    source = load_keystore(args.existing_keystore or volume.keystore)
    source.check_volume(volume.volume_id)
    use_configured_secret(args, settings)
    directory = command_directory(place)
    found_directory = directory.exists()
    with exclusive(volume):
        known = recognised(source.document, volume)
        if known is not None and len(source.document.volumes) == 1:
            raise TdefsError(
                Exit.VOLUME_REGISTERED,
                f'volume "{volume.backing}" is {known.id}, the only one that the keystore "{source.path}" knows',
                hint="it needs no other keystore; name the copy if that was meant",
            )
        try:
            protector = secret_from_arguments(args, place, source_finder(args), confirm=False)
            copy_command_directory(source.path, place)
            unlocked = open_recorded(source, protector, "volume copied")
            if args.existing_keystore is None:
                check_remembered(volume, unlocked)
            statements = statements_of(source.document, volume)
            ring = copy_keystore(source, place, protector, place_of(volume), statements)
            try:
                _copy_session(volume, unlocked, load_keystore(place).open(protector), place)
                save_volume(replace(volume, keystore=place), history_key_of(ring))
            except BaseException:
                remove_copy(place)
                raise
        except BaseException:
            if not found_directory:
                shutil.rmtree(directory, ignore_errors=True)
            raise
    args.changed = True
    print_line(
        f'volume "{printable(str(volume.backing))}" has a keystore of its own now: "{printable(str(place))}"'
    )
    print_line("keep a copy of it elsewhere, too; it opens by the same secrets until you change them")
    if known is not None:
        print_line(f"the old one knows the volume still: 'tdefs volume forget {known.id}' there ends that")
    return Exit.OK


def _copy_session(volume: Volume, old: Unlocked, new: Unlocked, keystore: Path) -> None:
    """As :func:`_take_over`, where the keystore's copy has another history, and another key for that."""
    adopt(
        Binding.of(volume, old.ring, keystore, None),
        Binding.of(volume, new.ring, keystore, FIRST_VOLUME),
    )
    last = read_session(volume)
    if last is not None and last.is_authentic(history_key_of(old.ring)):
        authenticated = replace(last, volume="").authenticated(history_key_of(new.ring))
        book_of(volume, FIRST_VOLUME, new, keystore).take_over(authenticated)


def _forget(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    with changing(args, volume, "volume forget") as change:
        entry = find_volume(change.document, args.known)
        if _is_in_use(change, entry):
            raise TdefsError(
                Exit.VOLUME_REGISTERED,
                f'volume {entry.id} is at "{printable(entry.path)}", and uses the keystore',
                hint="remove it first if it is to be no more; 'tdefs volume copied' gives it one of its own",
            )
        change.save(forget_volume(change.unlocked, entry.id), volume=entry.id, path=printable(entry.path))
        change.tell_revision()
    print_line(f'the keystore does not know {entry.id} at "{printable(entry.path)}" any more')
    return Exit.OK


def _is_in_use(change: OpenChange, entry: VolumeEntry) -> bool:
    """Tell whether the volume of *entry* is at its place, and uses the keystore that is changed."""
    found = look(change.document, entry)
    return isinstance(found, Volume) and uses(found, change.path)

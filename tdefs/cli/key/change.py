"""The sub-commands of ``tdefs key`` that change the keystore, and tell the daemons of mounted volumes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tdefs.cli.common.daemon_keys import daemon_status, tell_daemons
from tdefs.cli.common.keystore_change import OpenChange, changing
from tdefs.cli.common.output import print_line
from tdefs.cli.common.place import volume_of
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.this_host import forget_here
from tdefs.cli.common.unlocking import keystore_path, record, unlock
from tdefs.cli.key.files import KeyFiles
from tdefs.cli.protector.renewal import Renewal, candidates
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ACTIVE, DESTROYED
from tdefs.keys.keystore.file import Unlocked, remove_what_is_not_saved
from tdefs.keys.keystore.key_changes import (
    chosen_rounds,
    create_data_key,
    destroy_rounds,
    find_data_key,
    revoke_rounds,
    rotate_data_key,
    rotate_master_key,
)
from tdefs.keys.keystore.transaction import repair
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.policy.parse import load_policy
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.registry import statements_of

_SHOWN_FILES = 50


def run_create(args: argparse.Namespace) -> int:
    """``tdefs key create``."""
    new = _change(args, "key create", lambda old: create_data_key(old, args.name), key=args.name)
    algorithm = find_data_key(new.document, args.name).rounds[-1].algorithm
    print_line(f"data key {args.name} is created ({algorithm}), protected by {new.master.name}")
    return Exit.OK


def run_rotate(args: argparse.Namespace) -> int:
    """``tdefs key rotate``."""
    new = _change(args, "key rotate", lambda old: rotate_data_key(old, args.name), key=args.name)
    number = find_data_key(new.document, args.name).rounds[-1].round
    print_line(f"data key {args.name} has the new round {number}, which new files use; older files stay readable")
    return Exit.OK


def run_revoke(args: argparse.Namespace) -> int:
    """``tdefs key revoke``."""
    with changing(args, volume_of(args), "key revoke", sees_all=True) as change:
        new = revoke_rounds(change.unlocked, args.name, args.round)
        entry = find_data_key(new.document, args.name)
        if all(one.state != ACTIVE for one in entry.rounds):
            for volume in change.users.seen:
                _refuse_while_policy_needs(args, change, volume)
        _save_and_tell(change, new, {"key": args.name, "round": args.round})
    rounds = [one.round for one in chosen_rounds(entry, args.round)]
    print_line(f"no new file may use {_named(args.name, rounds)}")
    files = KeyFiles.scan(change.users.seen, args.name, rounds)
    count = len(files.paths)
    print_line(f"{count} {'file uses' if count == 1 else 'files use'} it" + (":" if count else ""))
    for line in files.shown(_SHOWN_FILES):
        print_line(f"    {line}")
    if files.unknown:
        print_line(f"{len(files.unknown)} more could not be looked at")
    _print_uncounted(change)
    return Exit.OK


def _refuse_while_policy_needs(args: argparse.Namespace, change: OpenChange, volume: Volume) -> None:
    """Check that the policy of *volume* does not need the data key for new files.

    :raises TdefsError: DATA_KEY_NEEDED.
    """
    if args.name in _policy_keys(args, change, volume):
        raise TdefsError(
            Exit.DATA_KEY_NEEDED,
            f"the policy names data key {args.name}, which would have no active round for new files",
            detail=f'it is the policy of volume "{volume.backing}"',
            hint=f"'tdefs key rotate {args.name}' first, and revoke the old round with --round,"
            " or change the policy",
        )


def run_destroy(args: argparse.Namespace) -> int:
    """``tdefs key destroy``."""
    with changing(args, volume_of(args), "key destroy", sees_all=True) as change:
        chosen = chosen_rounds(find_data_key(change.document, args.name), args.round)
        rounds = [one.round for one in chosen if one.state != DESTROYED]
        new = destroy_rounds(change.unlocked, args.name, args.round)
        # that no new file can come under it from now on
        tell_daemons(change.users.seen, change.path, change.unlocked.ring, change.unlocked.ring, silent=True)
        if not rounds:
            gone = [one.round for one in chosen]
            print_line(f"{_named(args.name, gone)} {'were' if len(gone) > 1 else 'was'} destroyed before")
            return Exit.OK
        files = KeyFiles.scan(change.users.seen, args.name, rounds)
        if args.destroy_files_of != args.name and (files.paths or files.unknown):
            raise TdefsError(
                Exit.DATA_KEY_NEEDED,
                f"{len(files.paths)} files use {_named(args.name, rounds)}, and would be unreadable for ever"
                + (f"; {len(files.unknown)} more could not be looked at" if files.unknown else ""),
                detail="\n".join([*files.shown(_SHOWN_FILES), *map(printable, files.unknown[:_SHOWN_FILES])]),
                hint="write these files anew under another key first (VACUUM FULL, pg_basebackup, a dump), or add"
                f" --destroy-files-of {args.name} if their loss is what you want",
            )
        _save_and_tell(change, new, {"key": args.name, "round": args.round, "files": len(files.paths)})
    verb = "are" if len(rounds) > 1 else "is"
    print_line(
        f"{_named(args.name, rounds)} {verb} destroyed; {len(files.paths)} files became unreadable for ever"
    )
    _print_uncounted(change)
    print_line("copies of the keystore made before still have the key: destroy them, too")
    return Exit.OK


def run_rotate_master(args: argparse.Namespace) -> int:
    """``tdefs key rotate-master``."""
    volume = volume_of(args)
    with changing(args, volume, "key rotate-master", sees_all=True) as change:
        given = change.protector
        renewal = Renewal(change.document, candidates(args, volume, change.document, given))
        try:
            new = rotate_master_key(change.unlocked, renewal.renew)
            what = {"renewed": " ".join(old.id for old, _, _ in renewal.renewed) or None}
            _save_and_tell(change, new, what)
        finally:
            saved = change.document.protectors
            for old, entry, protector in renewal.renewed:
                if entry.wrapped not in {one.wrapped for one in saved}:
                    remove_what_is_not_saved(change.path, protector, [entry], warn)
                elif isinstance(protector, ThisHostProtector):
                    forget_here(protector, old)
    print_line(f"the master key is {new.master.name} now; every protector opens it, and no file was touched")
    renewal.print()
    if renewal.left:
        print_line("after a leak of the old keystore: do that, and rotate the master key once more")
    return Exit.OK


def run_repair(args: argparse.Namespace) -> int:
    """``tdefs key repair``, which needs no secret."""
    path = keystore_path(args, volume_of(args))
    notes = repair(path)
    args.changed = True
    if notes:
        record(path, "key repair", {"found": "; ".join(notes)})
    for note in notes or ["nothing was left by a stopped change, and the keystore is whole"]:
        print_line(printable(note))
    return Exit.OK


def run_reload(args: argparse.Namespace) -> int:
    """``tdefs key reload``."""
    volume = volume_of(args)
    ring = unlock(args, volume).unlocked.ring
    if not tell_daemons([volume], keystore_path(args, volume), ring, ring, silent=True):
        raise TdefsError(Exit.NOT_MOUNTED, f'volume "{volume.backing}" is not mounted with this keystore')
    args.changed = True
    print_line(f"the daemon uses revision {ring.revision} of the keystore")
    return Exit.OK


def _change(
    args: argparse.Namespace,
    command: str,
    make: Callable[[Unlocked], Unlocked],
    **what: str | int | None,
) -> Unlocked:
    with changing(args, volume_of(args), command) as change:
        _save_and_tell(change, make(change.unlocked), what)
        return change.unlocked


def _save_and_tell(change: OpenChange, new: Unlocked, what: Mapping[str, Any]) -> None:
    """Save first: what a daemon uses must be in the keystore, or the next mount could not read it."""
    old = change.unlocked.ring
    change.save(new, None, maker=None, **what)
    change.tell(old)


def _print_uncounted(change: OpenChange) -> None:
    if change.unseen:
        print_line(f"files of {', '.join(change.unseen)} could not be looked at")


def _named(name: str, rounds: list[int]) -> str:
    return f"{'rounds' if len(rounds) > 1 else 'round'} {', '.join(map(str, rounds))} of data key {name}"


def _policy_keys(args: argparse.Namespace, change: OpenChange, volume: Volume) -> set[str]:
    """Return the data keys that the policy names: the daemon's, the configuration's or the keystore's."""
    status = daemon_status(volume)
    settings = load_config(args.config).for_backing(volume.backing)
    policy = (status and status.policy) or settings.policy or statements_of(change.document, volume).policy
    try:
        return set(load_policy(Path(policy)).key_names()) if policy else set()
    except (TdefsError, OSError) as error:
        print(f"tdefs: warning: the policy cannot be read: {printable(str(error))}", file=sys.stderr)
        return set()

"""The subcommands of ``tdefs key`` that change the keystore and pass the change on to the daemons."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.cli.common.daemon_keys import daemon_status, tell_daemons
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import OpenChange, changing
from tdefs.cli.common.output import print_line
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.this_host import forget_here
from tdefs.cli.common.unlocking import KeystoreAccess, keystore_path, record, unlock
from tdefs.cli.key.files import KeyFiles
from tdefs.cli.protector.renewal import Renewal, candidates
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


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """Of ``tdefs key create``."""

    name: str
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class RotateOptions:
    """Of ``tdefs key rotate``."""

    name: str
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class RevokeOptions:
    """Of ``tdefs key revoke``."""

    name: str
    round: int | None
    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess

    @property
    def about(self) -> dict[str, str | int | None]:
        """What the history records about the command."""
        return {"key": self.name, "round": self.round}


@dataclass(frozen=True, slots=True)
class DestroyOptions(RevokeOptions):
    """Of ``tdefs key destroy``."""

    destroy_files_of: str | None


@dataclass(frozen=True, slots=True)
class RotateMasterOptions:
    """Of ``tdefs key rotate-master``."""

    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """Of ``tdefs key repair``."""

    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class ReloadOptions:
    """Of ``tdefs key reload``."""

    volume: VolumeChoice
    access: KeystoreAccess


def run_create(_invocation: Invocation, options: CreateOptions) -> int:
    """``tdefs key create``."""
    new = _change(options, lambda old: create_data_key(old, options.name))
    algorithm = find_data_key(new.document, options.name).rounds[-1].algorithm
    print_line(f"data key {options.name} is created ({algorithm}), protected by {new.master.name}")
    return Exit.OK


def run_rotate(_invocation: Invocation, options: RotateOptions) -> int:
    """``tdefs key rotate``."""
    new = _change(options, lambda old: rotate_data_key(old, options.name))
    number = find_data_key(new.document, options.name).rounds[-1].round
    print_line(
        f"data key {options.name} has the new round {number}, which new files use; older files stay readable"
    )
    return Exit.OK


def run_revoke(_invocation: Invocation, options: RevokeOptions) -> int:
    """``tdefs key revoke``."""
    with _changing_all(options) as change:
        new = revoke_rounds(change.unlocked, options.name, options.round)
        entry = find_data_key(new.document, options.name)
        if all(one.state != ACTIVE for one in entry.rounds):
            for volume in change.users.seen:
                _refuse_while_policy_needs(options, change, volume)
        _save_and_tell(change, new, {"key": options.name, "round": options.round})
    rounds = [one.round for one in chosen_rounds(entry, options.round)]
    print_line(f"no new file may use {_named(options.name, rounds)}")
    files = KeyFiles.scan(change.users.seen, options.name, rounds)
    count = len(files.paths)
    print_line(f"{count} {'file uses' if count == 1 else 'files use'} it" + (":" if count else ""))
    for line in files.shown(_SHOWN_FILES):
        print_line(f"    {line}")
    if files.unknown:
        print_line(f"{len(files.unknown)} more could not be looked at")
    _print_uncounted(change)
    return Exit.OK


def _refuse_while_policy_needs(options: RevokeOptions, change: OpenChange, volume: Volume) -> None:
    """Check that the policy of *volume* does not need the data key for new files.

    :raises TdefsError: DATA_KEY_NEEDED.
    """
    if options.name in _policy_keys(options.access, change, volume):
        raise TdefsError(
            Exit.DATA_KEY_NEEDED,
            f"the policy names data key {options.name}, which would have no active round for new files",
            detail=f'it is the policy of volume "{volume.backing}"',
            hint=f"'tdefs key rotate {options.name}' first, and revoke the old round with --round,"
            " or change the policy",
        )


def run_destroy(_invocation: Invocation, options: DestroyOptions) -> int:
    """``tdefs key destroy``."""
    with _changing_all(options) as change:
        chosen = chosen_rounds(find_data_key(change.document, options.name), options.round)
        rounds = [one.round for one in chosen if one.state != DESTROYED]
        new = destroy_rounds(change.unlocked, options.name, options.round)
        # so that no new file can use it from now on
        tell_daemons(change.users.seen, change.path, change.unlocked.ring, change.unlocked.ring, silent=True)
        if not rounds:
            gone = [one.round for one in chosen]
            print_line(f"{_named(options.name, gone)} {'were' if len(gone) > 1 else 'was'} destroyed before")
            return Exit.OK
        files = KeyFiles.scan(change.users.seen, options.name, rounds)
        if options.destroy_files_of != options.name and (files.paths or files.unknown):
            raise TdefsError(
                Exit.DATA_KEY_NEEDED,
                f"{len(files.paths)} files use {_named(options.name, rounds)}, and would be unreadable for ever"
                + (f"; {len(files.unknown)} more could not be looked at" if files.unknown else ""),
                detail="\n".join([*files.shown(_SHOWN_FILES), *map(printable, files.unknown[:_SHOWN_FILES])]),
                hint="write these files anew under another key first (VACUUM FULL, pg_basebackup, a dump), or add"
                f" --destroy-files-of {options.name} if their loss is what you want",
            )
        _save_and_tell(change, new, {"key": options.name, "round": options.round, "files": len(files.paths)})
    verb = "are" if len(rounds) > 1 else "is"
    print_line(
        f"{_named(options.name, rounds)} {verb} destroyed; {len(files.paths)} files became unreadable for ever"
    )
    _print_uncounted(change)
    print_line("copies of the keystore made before still have the key: destroy them, too")
    return Exit.OK


def run_rotate_master(_invocation: Invocation, options: RotateMasterOptions) -> int:
    """``tdefs key rotate-master``."""
    volume = options.volume.find()
    with changing(options.access, volume, unseen=options.unseen_volume) as change:
        given = change.protector
        renewal = Renewal(change.document, candidates(options.access, volume, change.document, given))
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


def run_repair(invocation: Invocation, options: RepairOptions) -> int:
    """``tdefs key repair``, which needs no secret."""
    path = keystore_path(options.access, options.volume.find())
    notes = repair(path)
    invocation.changed = True
    if notes:
        record(path, "key repair", {"found": "; ".join(notes)})
    for note in notes or ["nothing was left by a stopped change, and the keystore is whole"]:
        print_line(printable(note))
    return Exit.OK


def run_reload(invocation: Invocation, options: ReloadOptions) -> int:
    """``tdefs key reload``."""
    volume = options.volume.find()
    ring = unlock(options.access, volume).unlocked.ring
    if not tell_daemons([volume], keystore_path(options.access, volume), ring, ring, silent=True):
        raise TdefsError(Exit.NOT_MOUNTED, f'volume "{volume.backing}" is not mounted with this keystore')
    invocation.changed = True
    print_line(f"the daemon uses revision {ring.revision} of the keystore")
    return Exit.OK


def _change(options: CreateOptions | RotateOptions, make: Callable[[Unlocked], Unlocked]) -> Unlocked:
    about = {"key": options.name}
    with changing(options.access, options.volume.find(), about=about) as change:
        _save_and_tell(change, make(change.unlocked), about)
        return change.unlocked


def _changing_all(options: RevokeOptions) -> AbstractContextManager[OpenChange]:
    """Lock the keystore for a change that takes something away from every volume that uses it."""
    return changing(options.access, options.volume.find(), about=options.about, unseen=options.unseen_volume)


def _save_and_tell(change: OpenChange, new: Unlocked, what: Mapping[str, Any]) -> None:
    """Save the keystore, then send it to the daemons: the next mount must have all keys that a daemon uses."""
    old = change.unlocked.ring
    change.save(new, None, maker=None, **what)
    change.tell(old)


def _print_uncounted(change: OpenChange) -> None:
    if change.unseen:
        print_line(f"files of {', '.join(change.unseen)} could not be looked at")


def _named(name: str, rounds: list[int]) -> str:
    return f"{'rounds' if len(rounds) > 1 else 'round'} {', '.join(map(str, rounds))} of data key {name}"


def _policy_keys(access: KeystoreAccess, change: OpenChange, volume: Volume) -> set[str]:
    """Return the data keys that the policy names: the daemon's, the configuration's or the keystore's."""
    status = daemon_status(volume)
    settings = access.settings(volume)
    policy = (status and status.policy) or settings.policy or statements_of(change.document, volume).policy
    try:
        return set(load_policy(Path(policy)).key_names()) if policy else set()
    except (TdefsError, OSError) as error:
        print(f"tdefs: warning: the policy cannot be read: {printable(str(error))}", file=sys.stderr)
        return set()

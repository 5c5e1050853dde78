"""``tdefs volume moved`` and ``tdefs volume add``: noting in the keystore where a volume is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import OpenChange, changing
from tdefs.cli.common.keystore_users import uses
from tdefs.cli.common.output import print_line
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.unlocking import KeystoreAccess
from tdefs.errors import Exit, TdefsError, VolumeInUseError
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.changes import add_volume, find_volume, move_volume
from tdefs.keys.keystore.entries import VolumeEntry
from tdefs.keys.keystore.file import Unlocked
from tdefs.manifest.state import Binding, rebind_manifest
from tdefs.text import printable
from tdefs.volume.believed import book_of
from tdefs.volume.description import Volume, remembers_truly, save_volume
from tdefs.volume.lock import exclusive
from tdefs.volume.registry import look, place_of, recognised, statements_of
from tdefs.volume.session_record import Session, read_session


@dataclass(frozen=True, slots=True)
class MovedOptions:
    """Of ``tdefs volume moved``."""

    volume: VolumeChoice
    old: str | None
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class AddOptions:
    """Of ``tdefs volume add``."""

    volume: VolumeChoice
    access: KeystoreAccess


def run_moved(_invocation: Invocation, options: MovedOptions) -> int:
    """Note in the keystore that the volume is at this place, and not at the old one."""
    access, volume = options.access, options.volume.find_named()
    with (
        _keystore_remembered(access, volume) as (unmounted, remember),
        changing(access, volume, registers=True) as change,
    ):
        if not change.document.volumes:
            new, id = add_volume(change.unlocked, place_of(volume), statements_of(change.document, volume))
        else:
            id = _old_entry(options.old, change, volume).id
            new = move_volume(change.unlocked, id, place_of(volume))
        change.save(new, volume=id, path=printable(str(volume.backing)))
        remember(change)
        _take_over(volume, change.unlocked, id, change.path, is_locked=unmounted is not None)
        change.tell_revision(unmounted=unmounted)
    print_line(f'the keystore knows {id} at "{printable(str(volume.backing))}" now')
    return Exit.OK


def _old_entry(named: str | None, change: OpenChange, volume: Volume) -> VolumeEntry:
    """Return the entry of the volume that is at the place of *volume* now.

    :param named: the id that the command line names.
    :raises TdefsError: VOLUME_REGISTERED if it is where it was; USAGE if it may be any of several.
    """
    document = change.document
    known = recognised(document, volume)
    if known is not None:
        return known
    here = [entry for entry in document.volumes if entry.path == str(volume.backing)]
    candidates = [find_volume(document, named)] if named is not None else here or list(document.volumes)
    gone = [entry for entry in candidates if not is_in_use(change, entry)]
    if not gone:
        raise TdefsError(
            Exit.VOLUME_REGISTERED,
            f'volume {candidates[0].id} is still at "{printable(candidates[0].path)}", so "{volume.backing}" is a'
            " second one",
            hint=f'"tdefs volume copied {volume.backing} --keystore FILE" gives it a keystore of its own, "tdefs'
            f' volume add {volume.backing}" has both share one; remove the old one first'
            " if it is no longer needed",
        )
    if len(gone) > 1:
        raise TdefsError(
            Exit.USAGE,
            "which volume was it?",
            detail="\n".join(f'{entry.id} was at "{printable(entry.path)}"' for entry in gone),
            hint="name it with --from",
        )
    return gone[0]


def run_add(_invocation: Invocation, options: AddOptions) -> int:
    """Add a volume to the keystore."""
    access, volume = options.access, options.volume.find_named()
    with (
        _keystore_remembered(access, volume) as (unmounted, remember),
        changing(access, volume, registers=True) as change,
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
    access: KeystoreAccess, volume: Volume
) -> Iterator[tuple[Volume | None, Callable[[OpenChange], None]]]:
    """Yield a function that writes into the volume which keystore it uses, if the command line names one.

    Then the volume's lock is held, since no other process may write the description, and the first value is
    *volume*.

    :raises TdefsError: VOLUME_IN_USE.
    """
    if access.keystore is None:
        yield None, lambda _change: None
        return
    keystore = access.keystore.absolute()

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
    """Let the manifest of a copy, and the record of its last session, count as the volume's own.

    A copy in the middle of a session, or a restored one, is older than the history knows. The secret confirms that
    it is wanted. A mounted volume has its own session.

    :param is_locked: whether the caller holds the volume's lock.
    """
    binding = Binding.of(volume, unlocked.ring, keystore, id)
    last: Session | None = None
    try:
        with nullcontext() if is_locked else exclusive(volume):
            rebind_manifest(binding, binding)
            last = read_session(volume)
            if last is None or not last.is_authentic(history_key_of(unlocked.ring)):
                return
            if last.clean and last.volume == id:
                return
            fault = book_of(volume, id, unlocked, keystore).take_over(last)
    except VolumeInUseError:
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


def is_in_use(change: OpenChange, entry: VolumeEntry) -> bool:
    """Return whether the volume of *entry* is at its place, and uses the keystore that is changed."""
    found = look(change.document, entry)
    return isinstance(found, Volume) and uses(found, change.path)

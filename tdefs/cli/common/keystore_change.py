"""The steps of all commands that change a keystore: lock it, unlock its keys, save, and report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tdefs.cli.common.daemon_keys import tell_daemons
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_users import KeystoreUsers, meant_unseen, not_registered, shown_unseen, users_of
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.unlocking import (
    KeystoreAccess,
    check_place,
    keystore_path,
    open_recorded,
    record,
    unlocking_secret,
)
from tdefs.errors import DaemonNotToldError, TdefsError
from tdefs.keys.hierarchy import KEY_NAME, KeyRing
from tdefs.keys.keystore.changes import moved
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import Unlocked, remove_what_is_not_saved
from tdefs.keys.keystore.transaction import KeystoreChange
from tdefs.keys.protectors.base import Protector
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.registry import place_of, recognised, was_renamed


class OpenChange:
    """A keystore that is locked against other changes and unlocked."""

    def __init__(
        self,
        invocation: Invocation,
        change: KeystoreChange,
        path: Path,
        unlocked: Unlocked,
        protector: Protector,
        users: KeystoreUsers,
    ) -> None:
        self._invocation = invocation
        #: The place of the keystore as the command line names it: a key command finds its directory by that.
        self.path = path
        self._change = change
        self._protector = protector
        self.unlocked = unlocked
        #: The volumes that use the keystore.
        self.users = users
        #: The ids of those that cannot be seen, if the command line names them.
        self.unseen: list[str] = []
        #: Whether this process tried to save it; then the history has a record of that.
        self.was_tried = False

    @property
    def protector(self) -> Protector:
        """The protector that unlocked the keystore."""
        return self._protector

    @property
    def document(self) -> Document:
        """The keystore as it is."""
        return self.unlocked.document

    def save(
        self,
        new: Unlocked,
        secrets: Sequence[Protector] | None = None,
        *,
        maker: Protector | None = None,
        **what: str | int | None,
    ) -> None:
        """Write the new keystore; *secrets* must open it, by default the one that opened the old keystore.

        :param maker: the protector of the new entries; if they are not saved, what it made elsewhere is removed.
        :param what: the details for the history.
        """
        self.was_tried = True
        if self.unseen:
            what["unseen"] = " ".join(self.unseen)
        try:
            self.unlocked = self._change.save(new, [self._protector] if secrets is None else secrets, what)
        except BaseException:
            if maker is not None:
                known = {entry.wrapped for entry in self.document.protectors}
                entries = [entry for entry in new.document.protectors if entry.wrapped not in known]
                remove_what_is_not_saved(self._change.path, maker, entries, warn)
            raise
        self._invocation.changed = True
        if self._change.lacking:
            print(
                "tdefs: warning: the history is not as it was written: "
                f"{printable(self._change.lacking)}\n"
                "DETAIL:  the record of this change says so; a keystore copied without its history lacks it, too",
                file=sys.stderr,
            )

    def tell(self, old: KeyRing) -> None:
        """Send a change of keys to every daemon that uses the keystore; *old* are the keys before.

        :raises TdefsError: DAEMON_NOT_TOLD. For a volume that cannot be seen there is only a note.
        """
        for one in self.users.unseen:
            print(
                f"tdefs: {shown_unseen(one)}\n"
                "DETAIL:  its daemon, if there is one, did not get the change, and goes on with the keys it has",
                file=sys.stderr,
            )
        try:
            tell_daemons(self.users.seen, self.path, old, self.unlocked.ring)
        except TdefsError:
            print("tdefs: the keystore is changed", file=sys.stderr)
            raise

    def tell_revision(self, *, unmounted: Volume | None = None) -> None:
        """Send every daemon a change that leaves its keys as they are. It is harmless if a daemon does not get it.

        :param unmounted: a volume that has no daemon, since the caller holds its lock.
        """
        ring = self.unlocked.ring
        volumes = [volume for volume in self.users.seen if volume is not unmounted]
        try:
            tell_daemons(volumes, self.path, ring, ring, patience=0)
        except DaemonNotToldError as error:
            print(
                f"tdefs: {error.message}\nDETAIL:  {error.detail}\n"
                "It needs nothing of this change: its keys are the same, and its next start reads the keystore.",
                file=sys.stderr,
            )


def _subject(about: Mapping[str, str | int | None]) -> dict[str, str | int]:
    """Return the key or protector that a command names, for the history, if it can be the name of one."""
    return {
        what: given
        for what, given in about.items()
        # the id of a protector has the same form as the name of a key
        if isinstance(given, int) or (given is not None and KEY_NAME.fullmatch(given))
    }


@contextmanager
def changing(
    access: KeystoreAccess,
    volume: Volume,
    *,
    about: Mapping[str, str | int | None] | None = None,
    unseen: Sequence[str] | None = None,
    registers: bool = False,
) -> Iterator[OpenChange]:
    """Lock and unlock the keystore of *volume* for a change, during a ``with`` block.

    :param about: the key, its round, or the protector that the command names, for the history.
    :param unseen: for a change that takes something away: the volumes that the command line names although they
        cannot be seen. All others that use the keystore must be seen.
    :param registers: whether the command itself says what *volume* is; then the keystore need not know it.
    :raises TdefsError: KEYSTORE_BUSY; VOLUME_NOT_REGISTERED for a copy; VOLUME_UNSEEN; and errors of the keystore,
        its secret or the configuration.
    """
    command = access.invocation.command
    path = keystore_path(access, volume)
    with KeystoreChange(path, command) as change:
        for note in change.undone:
            print(f"tdefs: {printable(note)}", file=sys.stderr)
        change.keystore.check_volume(volume.volume_id)
        access.invocation.registration_reported = True  # an error reports it, and no warning
        protector = unlocking_secret(access, volume, change.keystore)
        unlocked = open_recorded(change.keystore, protector, command)
        check_place(access, volume, unlocked)
        users = users_of(unlocked.document, change.path, volume)
        opened = OpenChange(access.invocation, change, path, unlocked, protector, users)
        try:
            if not registers:
                _refuse_copy(opened, volume)
            if unseen is not None:
                opened.unseen = meant_unseen(unseen, opened.document, users)
            yield opened
        except TdefsError as error:
            if not opened.was_tried:
                what = {**_subject(about or {}), "error": error.exit_code.name}
                record(change.keystore.path, f"{command} refused", what, unlocked)
            raise


def _refuse_copy(change: OpenChange, volume: Volume) -> None:
    """Check that the keystore knows *volume* at its place, and note the present path in the change.

    :raises TdefsError: VOLUME_NOT_REGISTERED.
    """
    known = recognised(change.document, volume)
    if known is None:
        raise not_registered(change.document, change.path, volume)
    renamed = was_renamed(known, volume)
    if renamed:
        print(
            f'tdefs: volume {known.id} was renamed from "{printable(known.path)}" to'
            f' "{printable(str(volume.backing))}"; the keystore notes that with this change',
            file=sys.stderr,
        )
    if renamed or known.path == str(volume.backing):
        document = moved(change.document, known.id, place_of(volume))
        change.unlocked = replace(change.unlocked, document=document)

"""What all commands that change a keystore do: lock it, unlock its keys, save, and say what happened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tdefs.cli.common.daemon_keys import tell_daemons
from tdefs.cli.common.keystore_users import KeystoreUsers, meant_unseen, not_registered, shown_unseen, users_of
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.unlocking import check_place, keystore_path, open_recorded, record, unlocking_secret
from tdefs.errors import Exit, TdefsError
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
        args: argparse.Namespace,
        change: KeystoreChange,
        path: Path,
        unlocked: Unlocked,
        protector: Protector,
        users: KeystoreUsers,
    ) -> None:
        self._args = args
        #: The place of the keystore as commands that unlock name it, by which a key command finds its directory.
        self.path = path
        self._change = change
        self._protector = protector
        self.unlocked = unlocked
        #: The volumes that use the keystore.
        self.users = users
        #: The ids of those that cannot be seen, where that is meant.
        self.unseen: list[str] = []
        #: Whether it was tried to save, which the history tells by itself.
        self.was_tried = False

    @property
    def protector(self) -> Protector:
        """What unlocked the keystore."""
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
        """Write the new keystore; *secrets* are what must open it, by default what opened the old one.

        :param maker: the protector of the new entries; what it made elsewhere is removed if they are not saved.
        :param what: what the history says of the change.
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
        self._args.changed = True
        if self._change.lacking:
            print(
                "tdefs: warning: the history is not as it was written: "
                f"{printable(self._change.lacking)}\n"
                "DETAIL:  the record of this change says so; a keystore copied without its history lacks it, too",
                file=sys.stderr,
            )

    def tell(self, old: KeyRing) -> None:
        """Tell every daemon that uses the keystore of a change of keys; *old* are those of before.

        :raises TdefsError: DAEMON_NOT_TOLD. That of a volume that cannot be seen is a note.
        """
        for one in self.users.unseen:
            print(
                f"tdefs: {shown_unseen(one)}\n"
                "DETAIL:  its daemon, if there is one, was not told, and goes on with the keys it has",
                file=sys.stderr,
            )
        try:
            tell_daemons(self.users.seen, self.path, old, self.unlocked.ring)
        except TdefsError:
            print("tdefs: the keystore is changed", file=sys.stderr)
            raise

    def tell_revision(self, *, unmounted: Volume | None = None) -> None:
        """Tell every daemon of a change that leaves its keys what they are; one that is not told needs nothing.

        :param unmounted: a volume that has no daemon, since the caller holds its lock.
        """
        ring = self.unlocked.ring
        volumes = [volume for volume in self.users.seen if volume is not unmounted]
        try:
            tell_daemons(volumes, self.path, ring, ring, patience=0)
        except TdefsError as error:
            if error.exit_code is not Exit.DAEMON_NOT_TOLD:
                raise
            print(
                f"tdefs: {error.message}\nDETAIL:  {error.detail}\n"
                "It needs nothing of this change: its keys are the same, and its next start reads the keystore.",
                file=sys.stderr,
            )


def _subject(args: argparse.Namespace) -> dict[str, str | int]:
    """Return which key or protector a command names, for the history; not what cannot be the name of one."""
    subject: dict[str, str | int] = {}
    for what, given in (("key", getattr(args, "name", "")), ("protector", getattr(args, "id", ""))):
        if KEY_NAME.fullmatch(given):  # the id of a protector is of the same form
            subject[what] = given
    if getattr(args, "round", None) is not None:
        subject["round"] = args.round
    return subject


@contextmanager
def changing(
    args: argparse.Namespace, volume: Volume, command: str, *, sees_all: bool = False, registers: bool = False
) -> Iterator[OpenChange]:
    """Hold the right to change the keystore of *volume* for the time of a ``with`` block.

    :param sees_all: whether the change takes something away, so that every volume must be seen, unless the command
        line names it.
    :param registers: whether the command says itself what *volume* is, which the keystore need not know then.
    :raises TdefsError: KEYSTORE_BUSY; VOLUME_NOT_REGISTERED for a copy; VOLUME_UNSEEN; and what is wrong with the
        keystore, its secret or the configuration.
    """
    path = keystore_path(args, volume)
    with KeystoreChange(path, command) as change:
        for note in change.undone:
            print(f"tdefs: {printable(note)}", file=sys.stderr)
        change.keystore.check_volume(volume.volume_id)
        args.registration_told = True  # an error will say it, and no warning
        protector = unlocking_secret(args, volume, change.keystore)
        unlocked = open_recorded(change.keystore, protector, command)
        check_place(args, volume, unlocked)
        users = users_of(unlocked.document, change.path, volume)
        opened = OpenChange(args, change, path, unlocked, protector, users)
        try:
            if not registers:
                _refuse_copy(opened, volume)
            if sees_all:
                opened.unseen = meant_unseen(args, opened.document, users)
            yield opened
        except TdefsError as error:
            if not opened.was_tried:
                what = {**_subject(args), "error": error.exit_code.name}
                record(change.keystore.path, f"{command} refused", what, unlocked)
            raise


def _refuse_copy(change: OpenChange, volume: Volume) -> None:
    """Check that the keystore knows *volume* at its place, and have the change note what that is called now.

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

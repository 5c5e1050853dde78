"""What all commands that change a keystore do: lock it, unlock its keys, save, and say what happened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tdefs.cli.unlock import keystore_path, open_recorded, record, unlocking_secret
from tdefs.errors import TdefsError
from tdefs.keys.document import Document
from tdefs.keys.hierarchy import KEY_NAME
from tdefs.keys.keystore import Unlocked, remove_what_is_not_saved
from tdefs.keys.protectors.base import Protector
from tdefs.keys.saving import KeystoreChange
from tdefs.keys.upgrade import upgraded
from tdefs.text import printable
from tdefs.volume import Volume


class OpenChange:
    """A keystore that is locked against other changes, unlocked, and of the version that is written."""

    def __init__(self, change: KeystoreChange, path: Path, unlocked: Unlocked, protector: Protector) -> None:
        #: The place of the keystore as commands that unlock name it, by which a key command finds its directory.
        self.path = path
        self._change = change
        self._protector = protector
        self.unlocked = unlocked
        #: Whether it was tried to save, which the history tells by itself.
        self.was_tried = False

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
        try:
            self.unlocked = self._change.save(new, [self._protector] if secrets is None else secrets, what)
        except BaseException:
            if maker is not None:
                known = {entry.wrapped for entry in self.document.protectors}
                entries = [entry for entry in new.document.protectors if entry.wrapped not in known]
                remove_what_is_not_saved(self._change.path, maker, entries)
            raise
        if self._change.lacking:
            print(
                "tdefs: warning: the history is not as it was written: "
                f"{printable(self._change.lacking)}\n"
                "DETAIL:  the record of this change says so; a keystore copied without its history lacks it, too",
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
def changing(args: argparse.Namespace, volume: Volume, command: str) -> Iterator[OpenChange]:
    """Hold the right to change the keystore of *volume* for the time of a ``with`` block.

    :raises TdefsError: KEYSTORE_BUSY, and what is wrong with the keystore, its secret or the configuration.
    """
    path = keystore_path(args, volume)
    with KeystoreChange(path, command) as change:
        for note in change.undone:
            print(f"tdefs: {printable(note)}", file=sys.stderr)
        change.keystore.check_volume(volume.volume_id)
        protector = unlocking_secret(args, volume)
        unlocked = open_recorded(change.keystore, protector, command)
        opened = OpenChange(change, path, upgraded(unlocked, protector), protector)
        try:
            yield opened
        except TdefsError as error:
            if not opened.was_tried:
                what = {**_subject(args), "error": error.exit_code.name}
                record(change.keystore.path, f"{command} refused", what, unlocked)
            raise

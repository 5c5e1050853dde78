"""The keystore of a second volume with the keys of a first one, such as a standby's; the two change apart."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.entries import Place, Statements
from tdefs.keys.keystore.file import Keystore, write_new_keystore
from tdefs.keys.keystore.history import append, head_path, history_path
from tdefs.keys.keystore.wrapped_keys import (
    FIRST_VOLUME,
    new_history_anchor,
    new_volume_entry,
    open_history_key,
    sign,
)
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command_text import command_directory
from tdefs.private import own_directory, own_place


def copy_keystore(
    source: Keystore, path: Path, protector: Protector, place: Place, statements: Statements
) -> KeyRing:
    """Write a copy of *source* at *path* and return its data keys; *protector* opens both.

    Keys and protectors are the same. The copy has a history of its own, with a key of its own. Its first record
    says where the copy comes from. The earlier records stay with the original, and are not missing here. The
    copy knows one volume, which is at *place*, and may do what *statements* say. After an error neither file is
    there.

    :raises TdefsError: VOLUME_EXISTS if there is something at *path*, or the history of a keystore that was there;
        and as :meth:`Keystore.open`.
    :raises OSError: a file cannot be written.
    """
    for left in (history_path(path), head_path(path)):
        if os.path.lexists(left):
            raise _exists(left, "the history of another keystore")
    original = source.document
    unlocked = source.open(protector)
    history = new_history_anchor(original.volume_id, unlocked.master)
    document = sign(
        replace(
            unlocked.document,
            history=history,
            volumes=(new_volume_entry(FIRST_VOLUME, place, statements),),
            revision=unlocked.document.revision + 1,
        ),
        unlocked.master,
    )
    ring = write_new_keystore(path, document, protector)
    what: dict[str, str | int | None] = {
        "from": str(source.path),
        "from_revision": original.revision,
        "from_records": original.history.count,
        "revision": document.revision,
    }
    try:
        append(path, "keystore copy", what, open_history_key(document.volume_id, history, unlocked.master))
    except BaseException:
        remove_copy(path)
        raise
    return ring


def remove_copy(path: Path) -> None:
    """Remove a copy that nobody has used yet, with its history."""
    with own_place(path) as directory:
        directory.unlink(path.name)
        for beside in (history_path(path), head_path(path)):
            if directory.exists(beside.name):
                directory.unlink(beside.name)


def copy_command_directory(source: Path, path: Path) -> None:
    """Copy the directory of the key command of the keystore *source*, if there is one, for the keystore *path*.

    :raises TdefsError: VOLUME_EXISTS if there is something at its place already.
    :raises OSError: it cannot be copied.
    """
    found, place = command_directory(source), command_directory(path)
    if not found.is_dir() or found.is_symlink():
        return
    with own_directory(place.parent) as directory:
        try:
            shutil.copytree(found, place, symlinks=True)
        except FileExistsError:
            raise _exists(place, "a directory for the files of a key command") from None
        directory.sync()


def _exists(path: Path, what: str) -> TdefsError:
    return TdefsError(
        Exit.VOLUME_EXISTS,
        f'there is {what} at "{path}" already',
        hint="choose another place with --keystore, or move it away if nothing needs it",
    )

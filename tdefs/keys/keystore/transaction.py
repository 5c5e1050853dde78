"""Changing a keystore file: one change at a time, and whenever it stops, the old or the new one is there whole.

Beside the keystore lies ``NAME.lock``. The process that changes the keystore has locked it with flock(2), and
has written into it which process that is. While a change is under way there is also ``NAME.new``. The steps are
those of PostgreSQL's proposed pg_alterckey: lock; undo what an earlier attempt left; write down in the history
what will be done; build the new keystore beside the old one; fsync; read back, and check that it opens; swap by
rename; fsync the directory; unlock.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tdefs.errors import Exit, KeystoreDamagedError, KeystoreMissingError, TdefsError, naming
from tdefs.keys import fields
from tdefs.keys.keystore.checking import faults
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import Keystore, Unlocked, load_keystore
from tdefs.keys.keystore.history import append, read_history
from tdefs.keys.keystore.history_checking import check_history
from tdefs.keys.keystore.text import MAX_BYTES, parse, serialise
from tdefs.keys.keystore.wrapped_keys import now, open_history_key, sign
from tdefs.keys.protectors.base import Protector
from tdefs.private import OwnDirectory, own_directory, own_place
from tdefs.users import acting_user

_MAX_LOCK_BYTES = 4096
_SHOWN_FINDINGS = 3


class KeystoreChange:
    """The right to change one keystore, for the time of a ``with`` block.

    ``keystore`` is what was found, still locked by its secret. ``undone`` says what an earlier attempt left. After
    :meth:`save`, ``lacking`` says what was wrong with the history before, or is empty.
    """

    def __init__(self, path: Path, command: str) -> None:
        """Prepare a change.

        :param command: says to others what is being done.
        """
        self.path = path.absolute()
        self._command = command
        self._lock: int | None = None
        self.undone: list[str] = []
        self.lacking = ""

    def __enter__(self) -> Self:
        """Take the lock, and undo what an earlier attempt left.

        :raises TdefsError: KEYSTORE_BUSY, and what :func:`load_keystore` raises.
        :raises OSError: the lock cannot be taken.
        """
        try:
            with own_place(self.path, keeper=self.path.name) as directory:
                self._lock = _lock(directory, self.path, self._command)
        except (FileNotFoundError, NotADirectoryError):
            load_keystore(self.path)  # its message is better
            raise
        try:
            self.keystore = load_keystore(self.path)
            self.undone = undo(self.path, self.keystore.document)
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(
        self, unlocked: Unlocked, secrets: Sequence[Protector], what: Mapping[str, str | int | None] | None = None
    ) -> Unlocked:
        """Write *unlocked* in place of the keystore, once it is certain that it can be read back and opened.

        After an error the keystore is as it was before, unless only the last fsync, of the directory, failed.

        :param secrets: what must open it; each of them is tried.
        :param what: what the history says of the change. It is written down there first.
        :returns: the keystore as it was written.
        :raises TdefsError: OS_ERROR for a keystore that cannot be read back right, KEYSTORE_FULL, and what a
            secret raises.
        :raises OSError: a file cannot be written.
        """
        new = beside(self.path, "new")
        with own_place(self.path, keeper=self.path.name) as directory:
            mode = stat.S_IMODE(directory.status(self.path.name).st_mode)
            unlocked = self._recorded(unlocked, self._command, what or {})
            try:
                with naming(new):
                    _write(directory, new.name, serialise(unlocked.document), mode)
                _check(Keystore(new, parse(_read_back(directory, new.name))), unlocked, secrets)
                directory.rename(new.name, self.path.name)
            except BaseException as error:
                with suppress(OSError):
                    directory.unlink(new.name)
                with suppress(OSError):
                    failed = {**(what or {}), "error": _kind(error)}
                    self._recorded(unlocked, f"{self._command} failed", failed, finished=False)
                raise
            directory.sync()
        self.keystore = Keystore(self.path, unlocked.document)
        return unlocked

    def _recorded(
        self, unlocked: Unlocked, event: str, what: Mapping[str, str | int | None], *, finished: bool = True
    ) -> Unlocked:
        """Write a change down in the history; return the keystore with the history's new end in it."""
        document, master = unlocked.document, unlocked.master
        key = open_history_key(document.volume_id, document.history, master)
        if finished:
            # from now on the keystore counts what is there now, so this record must say what is not there
            found = check_history(read_history(self.path), key, document.history, document.revision).findings
            self.lacking = "; ".join(found[:_SHOWN_FINDINGS])
            what = {**what, "lacking": self.lacking or None, "revision": document.revision}
        count, mac = append(self.path, event, what, key, new_head=finished)
        document = sign(replace(document, history=replace(document.history, count=count, mac=mac)), master)
        return replace(unlocked, document=document)


def _kind(error: BaseException) -> str:
    """Return what the history calls an error: the name of its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "INTERRUPTED"
    code = error.exit_code if isinstance(error, TdefsError) else Exit.UNEXPECTED
    return (Exit.OS_ERROR if isinstance(error, OSError) else code).name


def beside(path: Path, suffix: str) -> Path:
    """Return the file ``NAME.suffix`` in the directory of the keystore."""
    return path.with_name(f"{path.name}.{suffix}")


def undo(path: Path, document: Document) -> list[str]:
    """Remove what a stopped change of the keystore with *document* has left; say what that was.

    The caller holds the lock, so no other process is at work.
    """
    new = beside(path, "new")
    with own_place(path, keeper=path.name) as directory:
        try:
            left = directory.read(new.name, MAX_BYTES + 1)
        except FileNotFoundError:
            return []
        try:
            content = f"whole (revision {parse(left).revision})"
        except TdefsError:
            content = "incomplete"
        directory.unlink(new.name)
        directory.sync()
    return [
        f'an earlier change was stopped before it took effect: "{new}", which was {content}, is removed, and the '
        f"keystore is as it was before (revision {document.revision})"
    ]


def repair(path: Path) -> list[str]:
    """Bring the keystore's directory in order after a change that was stopped; say what was found and done.

    :raises TdefsError: KEYSTORE_BUSY while a change is under way; KEYSTORE_MISSING or KEYSTORE_DAMAGED if the
        keystore cannot be read and there is no whole new one beside it.
    :raises OSError: a file cannot be removed or renamed.
    """
    path = path.absolute()
    new = beside(path, "new")
    try:
        with KeystoreChange(path, "repair") as change:
            return [*change.undone, *_remove_temporaries(path)]
    except (KeystoreMissingError, KeystoreDamagedError) as error:
        # a kill never leaves this; a failing disk or a person may
        kept = beside(path, "damaged")
        with ExitStack() as stack:
            try:
                directory = stack.enter_context(own_place(path, keeper=new.name))
                document = parse(directory.read(new.name, MAX_BYTES + 1))
            except (OSError, TdefsError):
                raise error from None
            lock = _lock(directory, path, "repair")
            stack.callback(os.close, lock)
            if directory.exists(path.name):
                directory.rename(path.name, kept.name)
            directory.rename(new.name, path.name)
            directory.sync()
            is_kept = directory.exists(kept.name)
        return [
            f"the keystore could not be read ({error.detail or error.message}): the new one beside it, "
            f"revision {document.revision}, which is whole, is in its place now"
            + (f'; the old one is "{kept}"' if is_kept else "")
        ]


def _remove_temporaries(path: Path) -> list[str]:
    """Remove what the creation of a keystore has left that was stopped in the middle."""
    removed = []
    with own_directory(path.parent) as directory:
        for temporary in path.parent.glob(f".{path.name}.*.tmp"):
            directory.unlink(temporary.name)
            removed.append(f'a temporary file of a stopped creation, "{temporary}", is removed')
    return removed


def _lock(directory: OwnDirectory, keystore: Path, command: str) -> int:
    """Lock the file beside *keystore*, and write into it who did; return its descriptor."""
    path = beside(keystore, "lock")
    descriptor = directory.open(path.name, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TdefsError(
                Exit.KEYSTORE_BUSY,
                f'another process is changing the keystore "{keystore}"',
                detail=_holder(descriptor),
                hint="wait for its end, and try again; the lock ends with that process",
            ) from None
        note = {"pid": os.getpid(), "command": command, "since": fields.show_time(now()), **acting_user()}
        with naming(path):
            directory.give(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode("ascii") + b"\n", 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _holder(descriptor: int) -> str:
    """Return who holds the lock, as its note says; nothing if that cannot be read."""
    try:
        note = json.loads(os.pread(descriptor, _MAX_LOCK_BYTES, 0))
        return ascii(f"process {note['pid']} of user {note['user']}, since {note['since']}: {note['command']}")[
            1:-1
        ]
    except (ValueError, KeyError, TypeError):
        return ""


def _write(directory: OwnDirectory, name: str, data: bytes, mode: int) -> None:
    """Write a new file with the mode and the owner of the old keystore, and make its bytes durable."""
    descriptor = directory.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        directory.give(descriptor)
        os.fchmod(descriptor, mode)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_back(directory: OwnDirectory, name: str) -> bytes:
    """Return what is on the disk, not what is in the page cache, where the kernel lets us choose."""
    descriptor = directory.open(name, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        data = b""
        while block := os.read(descriptor, MAX_BYTES):
            data += block
        return data
    finally:
        os.close(descriptor)


def _check(written: Keystore, wanted: Unlocked, secrets: Sequence[Protector]) -> None:
    """Check a keystore that was read back: all keys are in it, and the secrets open it."""
    found = list(faults(written.document, wanted.master))
    if written.document != wanted.document:
        found.append("it is not what was written")
    for protector in secrets:
        opened = written.open(protector)
        if opened.master != wanted.master or list(opened.ring) != list(wanted.ring):
            found.append(f"{protector.words} opens other keys")
    if found:
        raise TdefsError(
            Exit.OS_ERROR,
            f'the new keystore "{written.path}" could not be read back, and is not used',
            detail="; ".join(found),
            hint="the old keystore is in its place; check the disk",
        )

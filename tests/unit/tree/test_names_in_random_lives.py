"""Random lives of a mount: when fsync of a file returns, each name on its path is on the disk.

The test is the kernel: it looks names up, keeps them as long as something below them is in use, and forgets them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from tdefs.data.calls import Owner
from tdefs.fuse.operations import FuseOperations
from tests.support.served_volume import ScriptedCalls, ServedVolume

STEPS = 250
NAMES = (b"a", b"b", b"c", b"16384", b"16385", b"pg_wal", b"x.conf")
CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=os.geteuid(), gid=os.getegid()))


class Disk(ScriptedCalls):
    """The real calls; knows which names are not on the disk yet, by the directory's number."""

    def __init__(self) -> None:
        super().__init__()
        self._unsynced: set[tuple[int, bytes]] = set()
        self._fails: Random | None = None

    def _let_fsync_fail(self, dice: Random | None) -> None:
        self._fails = dice

    def _is_durable(self, directory: int, name: bytes) -> bool:
        return (directory, name) not in self._unsynced

    def _changed(self, directory: int, name: bytes, *, is_there: bool) -> None:
        place = (os.fstat(directory).st_ino, name)
        if is_there:
            self._unsynced.add(place)
        else:
            self._unsynced.discard(place)

    def create(self, label: str, name: bytes, flags: int, mode: int, directory: int, owner: Owner) -> int:
        fd = super().create(label, name, flags, mode, directory, owner)
        self._changed(directory, name, is_there=True)
        return fd

    def mkdir(self, label: str, name: bytes, mode: int, directory: int, owner: Owner) -> None:
        super().mkdir(label, name, mode, directory, owner)
        self._changed(directory, name, is_there=True)
        number = os.stat(name, dir_fd=directory).st_ino
        self._unsynced = {place for place in self._unsynced if place[0] != number}

    def link(self, label: str, fd: int, new_name: bytes, new_directory: int) -> None:
        super().link(label, fd, new_name, new_directory)
        self._changed(new_directory, new_name, is_there=True)

    def unlink(self, label: str, name: bytes, directory: int) -> None:
        super().unlink(label, name, directory)
        self._changed(directory, name, is_there=False)

    def rmdir(self, label: str, name: bytes, directory: int) -> None:
        super().rmdir(label, name, directory)
        self._changed(directory, name, is_there=False)

    def rename(
        self, label: str, name: bytes, directory: int, new_name: bytes, new_directory: int, flags: int
    ) -> None:
        super().rename(label, name, directory, new_name, new_directory, flags)
        self._changed(directory, name, is_there=bool(flags))
        self._changed(new_directory, new_name, is_there=True)

    def fsync(self, label: str, fd: int) -> None:
        status = os.fstat(fd)
        if self._fails is not None and stat.S_ISDIR(status.st_mode) and self._fails.random() < 0.1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(label, fd)
        self._unsynced = {place for place in self._unsynced if place[0] != status.st_ino}


@dataclass(eq=False)
class Entry:
    """A name that the kernel knows, and what is there."""

    number: int
    above: Entry | None
    name: bytes
    is_directory: bool
    below: dict[bytes, Entry] = field(default_factory=dict)
    handles: int = 0
    is_there: bool = True

    def path(self) -> bytes:
        return b"" if self.above is None else os.path.join(self.above.path(), self.name)  # noqa: PTH118

    def holds(self, other: Entry | None) -> bool:
        while other is not None and other is not self:
            other = other.above
        return other is self


class Life:
    """The kernel and the programs of one mount."""

    def __init__(self, served: ServedVolume, disk: Disk, dice: Random) -> None:
        self._served = served
        self._disk = disk
        self._dice = dice
        root_fd = served.places.directory_fd(served.inodes.root)
        self._operations: Any = FuseOperations(served.files, root_fd, served.namespace._links._staging)
        self.root = Entry(int(pyfuse3.ROOT_INODE), None, b"", is_directory=True)
        self._lookups: dict[int, int] = {}
        self._open: list[tuple[int, Entry]] = []
        self.synced = 0
        self.refused = 0

    def _ask(self, request: Coroutine[Any, Any, Any]) -> Any:
        async def awaited() -> Any:
            return await request

        try:
            return trio.run(awaited)
        except FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None

    def _enter(self, above: Entry, name: bytes, answer: Any) -> Entry:
        self._lookups[answer.st_ino] = self._lookups.get(answer.st_ino, 0) + 1
        entry = Entry(answer.st_ino, above, name, stat.S_ISDIR(answer.st_mode))
        above.below[name] = entry
        return entry

    def _lookup(self, above: Entry, name: bytes) -> Entry | None:
        found = above.below.get(name)
        if found is None:
            answer = self._ask(self._operations.lookup(above.number, name, CONTEXT))
            found = self._enter(above, name, answer) if answer.st_ino else None
        return found

    def _somewhere(self, *, directory: bool) -> Entry:
        """A directory, or anything, that is found by walking down from the root."""
        entry = self.root
        for _ in range(self._dice.randrange(5)):
            if not entry.is_directory:
                break
            path = os.fsencode(self._served.data) + b"/" + entry.path()
            names = sorted(os.listdir(path))
            found = self._lookup(entry, self._dice.choice(names)) if names else None
            if found is None or (directory and not found.is_directory):
                break
            entry = found
        return entry

    def _forget(self, entry: Entry) -> None:
        """Forgets a name that nothing below needs, and the inode with its last name."""
        if entry.above is None or entry.below or entry.handles:
            return
        if entry.is_there:
            del entry.above.below[entry.name]
        self._drop(entry.number)

    def _drop(self, number: int) -> None:
        if all(entry.number != number for entry in self.entries()) and all(
            entry.number != number for _, entry in self._open
        ):
            self._ask(self._operations.forget([(number, self._lookups.pop(number))]))

    def entries(self, of: Entry | None = None) -> Iterator[Entry]:
        for entry in list((of or self.root).below.values()):
            yield from self.entries(entry)
            yield entry

    def _gone(self, entry: Entry) -> None:
        assert entry.above is not None
        entry.is_there = False
        if entry.above.below.get(entry.name) is entry:
            del entry.above.below[entry.name]
        if not entry.handles:
            self._drop(entry.number)

    # --- what programs do

    def make(self) -> None:
        above, name = self._somewhere(directory=True), self._dice.choice(NAMES)
        if self._lookup(above, name) is not None:
            return
        if self._dice.random() < 0.4:
            self._enter(above, name, self._ask(self._operations.mkdir(above.number, name, 0o700, CONTEXT)))
        else:
            info, answer = self._ask(
                self._operations.create(above.number, name, stat.S_IFREG | 0o600, os.O_RDWR, CONTEXT)
            )
            self._opened(info.fh, self._enter(above, name, answer))

    def _opened(self, handle: int, entry: Entry) -> None:
        entry.handles += 1
        self._open.append((handle, entry))

    def open(self) -> None:
        entry = self._somewhere(directory=False)
        if not entry.is_directory:
            flags = self._dice.choice((os.O_RDONLY, os.O_RDWR))
            self._opened(self._ask(self._operations.open(entry.number, flags, CONTEXT)).fh, entry)

    def close(self) -> None:
        if self._open:
            handle, entry = self._open.pop(self._dice.randrange(len(self._open)))
            self._ask(self._operations.release(handle))
            entry.handles -= 1
            if not entry.is_there and not entry.handles:
                self._drop(entry.number)

    def link(self) -> None:
        entry, above = self._somewhere(directory=False), self._somewhere(directory=True)
        name = self._dice.choice(NAMES)
        if not entry.is_directory and self._lookup(above, name) is None:
            answer = self._ask(self._operations.link(entry.number, above.number, name, CONTEXT))
            self._enter(above, name, answer)

    def move(self) -> None:
        entry, above = self._somewhere(directory=False), self._somewhere(directory=True)
        name = self._dice.choice(NAMES)
        target = self._lookup(above, name)
        if entry.above is None or entry.holds(above) or (target is not None and target.number == entry.number):
            return
        if target is not None and (target.is_directory or entry.is_directory):
            return
        self._ask(self._operations.rename(entry.above.number, entry.name, above.number, name, 0, CONTEXT))
        if target is not None:
            self._gone(target)
        del entry.above.below[entry.name]
        entry.above, entry.name = above, name
        above.below[name] = entry

    def remove(self) -> None:
        entry = self._somewhere(directory=False)
        if entry.above is None:
            return
        if entry.is_directory:
            try:
                self._ask(self._operations.rmdir(entry.above.number, entry.name, CONTEXT))
            except OSError as error:
                assert error.errno == errno.ENOTEMPTY
                return
        else:
            self._ask(self._operations.unlink(entry.above.number, entry.name, CONTEXT))
        self._gone(entry)

    def forget(self) -> None:
        for entry in list(self.entries()):
            if self._dice.random() < 0.7:
                self._forget(entry)

    def forget_everything(self) -> None:
        for entry in self.entries():
            self._forget(entry)

    def write(self) -> None:
        if self._open:
            handle, _ = self._dice.choice(self._open)
            self._ask(self._operations.write(handle, self._dice.choice((0, 100, 8192)), b"content"))

    def sync_directory(self) -> None:
        entry = self._somewhere(directory=True)
        handle = self._ask(self._operations.opendir(entry.number, CONTEXT))
        try:
            self._ask(self._operations.fsyncdir(handle, False))
        except OSError as error:
            assert error.errno == errno.EIO
        self._ask(self._operations.releasedir(handle))

    def sync(self) -> None:
        if not self._open:
            return
        handle, entry = self._dice.choice(self._open)
        try:
            self._ask(self._operations.fsync(handle, self._dice.random() < 0.5))
        except OSError as error:
            assert error.errno == errno.EIO and self._disk._fails is not None, f"{entry.path()!r}: {error}"
            self.refused += 1
            return
        self.synced += 1
        at: Entry | None = entry
        while entry.is_there and at is not None and at.above is not None:
            directory = os.stat(os.path.join(os.fsencode(self._served.data), at.above.path()))  # noqa: PTH116, PTH118
            assert self._disk._is_durable(directory.st_ino, at.name), (
                f"{at.path()!r} may be lost, and {entry.path()!r} was synced"
            )
            at = at.above

    def end(self) -> None:
        while self._open:
            self.close()
        for _ in range(20):
            self.forget_everything()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("fails", [False, True], ids=["sound", "failing"])
def test_after_a_sync_of_a_file_no_name_above_it_can_be_lost(
    tmp_path: Path, number: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("TDEFS_CRASH_SEED") or 12) * 1000 + number
    dice = Random(seed)
    disk = Disk()
    monkeypatch.setattr("tests.support.served_volume.ScriptedCalls", lambda: disk)
    (tmp_path / "data").mkdir()
    served = ServedVolume(tmp_path / "data")
    served.mkdirs("a/b", "16384", "pg_wal")
    disk._let_fsync_fail(dice if fails else None)
    life = Life(served, disk, dice)
    steps = (
        *(life.make, life.make, life.make, life.open, life.open, life.close, life.close, life.link),
        *(life.move, life.move, life.remove, life.forget, life.write, life.sync, life.sync, life.sync),
        *(life.sync_directory, life.forget_everything),
    )
    for _ in range(STEPS):
        dice.choice(steps)()
    life.end()
    assert life.synced > 0
    assert fails or not life.refused
    assert list(served.inodes) == [served.inodes.root], "nothing is known that the kernel has forgotten"
    served.close()

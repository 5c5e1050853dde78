"""A directory on a mount that a script of file operations works in, and what may be found in it afterwards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support.volume import Volume

#: What a file may contain; ``None``: it may be absent.
_States = list[bytes | None]


class Place:
    """One directory; each name in it has the states that it may be found in.

    A state is added before the operation that leads to it is tried, and those before it go when it is durable.
    """

    def __init__(self, volume: Volume, relpath: str) -> None:
        self.relpath = relpath
        self.path = volume.mountpoint / relpath
        self.data = volume.data / relpath
        self._states: dict[str, _States] = {}
        self.path.mkdir(parents=True)

    # --- operations

    @contextmanager
    def opened(self, name: str, flags: int = os.O_RDWR, mode: int = 0o600) -> Iterator[int]:
        """An open file; an error of closing it is an error of the block, unless that has one already."""
        if flags & os.O_CREAT:
            self._may_become(name, b"")
        fd = os.open(self.path / name, flags, mode)
        try:
            yield fd
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def write(self, fd: int, name: str, data: bytes, offset: int = 0) -> None:
        """Writes at the offset."""
        now = self.now(name) or b""
        self._may_become(name, now[:offset].ljust(offset, b"\0") + data + now[offset + len(data) :])
        assert os.pwrite(fd, data, offset) == len(data)

    def fsync(self, fd: int, name: str) -> None:
        """Afterwards the last state is the only one."""
        os.fsync(fd)
        self.settled(name)

    def file(self, name: str, data: bytes, flags: int = 0, mode: int = 0o600) -> None:
        """Makes a durable file, or writes it anew."""
        with self.opened(name, os.O_RDWR | os.O_CREAT | flags, mode) as fd:
            self.write(fd, name, data)
            self.fsync(fd, name)

    def truncate(self, name: str, length: int) -> None:
        """Sets the length."""
        now = self.now(name) or b""
        self._may_become(name, now[:length].ljust(length, b"\0"))
        os.truncate(self.path / name, length)

    def rename(self, name: str, new: str) -> None:
        """Renames, whatever is there by the new name."""
        content = self.now(name)
        before, replaced = self._states[name], self._states.get(new, [None])
        self._states[name] = [*before, None]
        self._states[new] = [*replaced, *before]
        try:
            (self.path / name).rename(self.path / new)
        except OSError:
            # an error says that nothing happened
            self._states[name], self._states[new] = before, replaced
            raise
        del self._states[name]
        self._states[new] = [*before, content]

    def unlink(self, name: str) -> None:
        """Removes it."""
        (self.path / name).unlink()
        del self._states[name]

    def link(self, name: str, new: str) -> None:
        """Makes one more name."""
        os.link(self.path / name, self.path / new)
        self._states[new] = list(self._states[name])

    def copied_below(self, name: str, new: str) -> None:
        """A file that the daemon has not seen yet, with the same content, and the same file id.

        Not for relations, which are bound.
        """
        (self.data / new).write_bytes((self.data / name).read_bytes())
        self._states[new] = [self.now(name)]

    def forget(self, name: str) -> None:
        """Whatever is found in it from now on is right."""
        del self._states[name]

    def empty_below(self, name: str) -> None:
        """An empty file that the daemon has not seen yet."""
        (self.data / name).touch(0o600)
        self._states[name] = [b""]

    def zeros_below(self, name: str, length: int) -> None:
        """A file of zeros that lie on the disk, which the daemon has not seen yet."""
        (self.data / name).write_bytes(bytes(length))
        self._states[name] = [bytes(length)]

    def linked_below(self, name: str, new: str) -> None:
        """One more name that the daemon has not seen yet."""
        (self.data / new).hardlink_to(self.data / name)
        self._states[new] = list(self._states[name])

    def expect(self, name: str, data: bytes | None) -> None:
        """One more state that the file may be found in, for operations that are not here."""
        self._may_become(name, data)

    def settled(self, name: str) -> None:
        """The last state is durable."""
        self._states[name] = self._states[name][-1:]

    def now(self, name: str) -> bytes | None:
        """The state that the last operation has led to."""
        return self._states.get(name, [None])[-1]

    def _may_become(self, name: str, content: bytes | None) -> None:
        self._states.setdefault(name, [None]).append(content)

    # --- what is found

    def read(self, name: str) -> bytes:
        """Reads a file and compares it with what may be in it."""
        fd = os.open(self.path / name, os.O_RDONLY)
        try:
            found = os.read(fd, 1 << 21)
        finally:
            os.close(fd)
        self._check(name, found)
        return found

    def check(self) -> None:
        """Every file in the directory may be there, is readable, and contains what it may contain."""
        present = {name for name in os.listdir(self.path) if (self.path / name).is_file()}
        for name in present:
            self.read(name)
        for name, states in self._states.items():
            assert name in present or None in states, f"{self.path / name} is gone"

    def check_below(self, content: Callable[[str], bytes]) -> None:
        """The same for what is on the disk, where ``content`` decrypts."""
        for path in self.data.iterdir():
            if path.is_file() and not path.is_symlink():
                self._check(path.name, content(f"{self.relpath}/{path.name}"))

    def _check(self, name: str, found: bytes) -> None:
        states = [state for state in self._states.get(name, []) if state is not None]
        assert states, f"{self.path / name} should not be there"
        assert min(map(len, states)) <= len(found) <= max(map(len, states)), (
            f"{self.path / name} has {len(found)} bytes, not one of {[len(state) for state in states]}"
        )
        if found in states:
            return
        for at, byte in enumerate(found):
            # what was extended and not yet written reads as zeros
            if byte and all(at >= len(state) or state[at] != byte for state in states):
                raise AssertionError(
                    f"{self.path / name} has a byte at {at} that nobody wrote: {found[at : at + 20]!r}"
                )
        durable = states[0] if len(states) == 1 else b""
        assert not durable or found == durable, f"{self.path / name} is not what was synced"


def verified(volume: Volume) -> None:
    """No file is damaged; the pages of these relations are not PostgreSQL's, so they are not looked at."""
    said = volume.tdefs("verify", volume.backing, *volume.unlock, check=False).stdout
    assert re.search(r"damaged +0\nunreadable +0\n", said), said

"""Doing the same to a plain directory and to one on a mount, and comparing what comes out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An action that raised an error of the system."""

    name: str

    @classmethod
    def of(cls, error: OSError) -> Failure:
        return cls(errno.errorcode.get(error.errno or 0, str(error)))


def outcome(action: Callable[[Path], T], directory: Path) -> T | Failure:
    """What the action returned, or which error of the system it raised."""
    try:
        return action(directory)
    except OSError as error:
        return Failure.of(error)


@dataclass(frozen=True)
class Twins:
    """A plain directory and one on a mount, to which the same things happen."""

    plain: Path
    mount: Path

    def same(self, action: Callable[[Path], T]) -> T:
        """Does it in both and compares; returns the result, and insists that there is one."""
        expected, got = outcome(action, self.plain), outcome(action, self.mount)
        assert not isinstance(expected, Failure), f"this fails in a plain directory, too: {expected}"
        assert not isinstance(got, Failure), f"{got} on the mount, in a plain directory {expected!r}"
        assert got == expected, "the mount (left) and a plain directory (right) differ"
        return got

    def same_error(self, action: Callable[[Path], object]) -> str:
        """Does it in both, insists that both fail, and in the same way; returns the name of the error."""
        expected, got = outcome(action, self.plain), outcome(action, self.mount)
        assert isinstance(expected, Failure), f"this works in a plain directory: {expected!r}"
        assert got == expected, "the mount (left) and a plain directory (right) differ"
        return expected.name

    def each(self, action: Callable[[Path], object]) -> None:
        """Prepares both; what comes out is not compared, since it differs from run to run."""
        for directory in (self.plain, self.mount):
            action(directory)


def content(directory: Path) -> dict[str, tuple[str, bytes]]:
    """Everything below a directory: ``{path: (kind, content or target)}``."""
    found: dict[str, tuple[str, bytes]] = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            relpath = str(path.relative_to(directory))
            if path.is_symlink():
                found[relpath] = ("link", os.fsencode(path.readlink()))
            elif path.is_dir():
                found[relpath] = ("directory", b"")
            elif path.is_file():
                found[relpath] = ("file", path.read_bytes())
            else:
                found[relpath] = ("node", b"")
    return found


def identity(status: os.stat_result) -> tuple[int, ...]:
    """The attributes that two directories can agree about."""
    size = status.st_size if not stat.S_ISDIR(status.st_mode) else 0
    return (status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size, status.st_rdev)

"""The directory in which the next text of a symbolic link is made, before it takes the place of the old one."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from tdefs.fs.calls import SystemCalls
from tdefs.text import printable_path

log = logging.getLogger(__name__)

DIRECTORY = "staging"


class Staging:
    """A directory of tdefs's own, on the file system of the tree that is served. Errors are OSError."""

    def __init__(self, calls: SystemCalls, place: Path) -> None:
        """Make the directory, if need be, and remove what a crash has left in it; the caller holds the lock."""
        self._calls = calls
        with suppress(FileExistsError):
            place.mkdir(mode=0o700)
        self.fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._last = 0
        for name in os.listdir(self.fd):
            try:
                os.unlink(name, dir_fd=self.fd)
            except OSError as error:
                log.warning("%s: not removed: %s", printable_path(os.fsencode(place / name)), error.strerror)

    def new_name(self) -> bytes:
        """Return a name that nothing in the directory has."""
        self._last += 1
        return b"%d.%s" % (self._last, os.urandom(4).hex().encode())

    def make_alike(self, name: bytes, like: os.stat_result) -> os.stat_result:
        """Give what was just made under *name* the owner and times of *like*; return its attributes."""
        fd = self._calls.open("relink:open", name, os.O_PATH, 0, self.fd)
        try:
            status = self._calls.fstat("relink:made", fd)
            if (status.st_uid, status.st_gid) != (like.st_uid, like.st_gid):
                # a daemon that is not root's may not give away to every group; it means nothing for a link
                with suppress(PermissionError):
                    self._calls.chown("relink:chown", b"", like.st_uid, like.st_gid, fd)
            self._calls.utimens("relink:times", b"", like.st_atime_ns, like.st_mtime_ns, fd)
        finally:
            self._calls.close("relink:close", fd)
        return status

    def discard(self, name: bytes) -> None:
        """Remove what was not moved to where it belongs; what cannot be removed is removed by the next mount."""
        with suppress(OSError):
            self._calls.unlink("staging:discard", name, self.fd)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

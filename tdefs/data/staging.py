"""The directory in which a symbolic link is made that will replace an old one."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

from tdefs.text import printable_path

log = logging.getLogger(__name__)

DIRECTORY = "staging"


class Staging:
    """A directory of tdefs's own, on the file system of the data directory. Errors are OSError."""

    def __init__(self, place: Path) -> None:
        """Make the directory if it is missing, and empty it after a crash; the caller holds the lock."""
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

    def open(self, name: bytes) -> int:
        """Return an ``O_PATH`` descriptor of the link that was just made under *name*."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

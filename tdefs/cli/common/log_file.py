"""The daemon's log as a file: opened like all files of tdefs's own, and put aside when it has grown."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tdefs.errors import TdefsError
from tdefs.private import UntrustedError, own_place
from tdefs.reserve import with_own_rights
from tdefs.volume.description import ROOTS_LOGS

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler  # which is no generic class when it runs

_MOST_BYTES = 10 << 20
_MOST_FILES = 3


class LogFile(_Handler):
    """A log that only its owner can read, in a directory that is opened once; it never fails because of a name."""

    def __init__(self, path: Path) -> None:
        """Open the log.

        :raises TdefsError: FILE_UNTRUSTED.
        :raises OSError: it cannot be opened.
        """
        self._file_name = path.name
        with ExitStack() as stack:
            self._directory = stack.enter_context(own_place(path))
            super().__init__(self._opened())
            self._open_for_good = stack.pop_all()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, also on a disk that is full for the users of the mount."""
        with with_own_rights():
            with suppress(OSError, TdefsError):  # what cannot be put aside grows on
                if os.fstat(self.stream.fileno()).st_size >= _MOST_BYTES:
                    self._put_aside()
            super().emit(record)

    def _put_aside(self) -> None:
        """Begin a new file: the old ones become NAME.1, NAME.2 and so on, and the oldest is removed."""
        for number in range(_MOST_FILES - 1, 0, -1):
            old = f"{self._file_name}.{number - 1}" if number > 1 else self._file_name
            with suppress(FileNotFoundError):
                self._directory.rename(old, f"{self._file_name}.{number}")
        before = self.setStream(self._opened())
        if before is not None:
            before.close()

    def _opened(self) -> TextIO:
        descriptor = self._directory.open(self._file_name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


def have_roots_logs() -> None:
    """Make the directory where daemons of root's log, unless it is there.

    :raises UntrustedError: others could exchange it; OSError.
    """
    with own_place(ROOTS_LOGS) as above, suppress(FileExistsError):
        os.mkdir(ROOTS_LOGS.name, 0o700, dir_fd=above.fd)


def default_log(path: Path) -> Path | None:
    """Return *path*, and make its directory; ``None`` if there is no safe one: then the system's log is used.

    :raises OSError: it cannot be made.
    """
    if path.parent == ROOTS_LOGS:
        try:
            have_roots_logs()
        except UntrustedError:
            return None
    return path

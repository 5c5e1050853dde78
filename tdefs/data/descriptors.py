"""Opening below when there are too many open files, and letting go of descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from errno import EMFILE, ENFILE

from tdefs.data.calls import Owner, SystemCalls

log = logging.getLogger(__name__)


class Descriptors:
    """The descriptors of one mount.

    Opening raises OSError; EMFILE and ENFILE only when there is nothing left to give up.
    """

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        #: Closes some descriptors that are kept for later; returns whether there were any.
        self.give_up: Callable[[], bool] = lambda: False

    def open_at(self, label: str, name: bytes, flags: int, mode: int, directory: int) -> int:
        """Open *name* in *directory*."""
        return self._retried(lambda: self._calls.open(label, name, flags, mode, directory))

    def create_at(self, label: str, name: bytes, flags: int, mode: int, directory: int, owner: Owner) -> int:
        """Make a file *name* in *directory* for *owner*, if it can be, and open it."""
        return self._retried(lambda: self._calls.create(label, name, flags, mode, directory, owner))

    def let_go(self, label: str, fd: int) -> None:
        """Close a descriptor through which nothing was written that is not synced: an error loses nothing."""
        try:
            self._calls.close(label, fd)
        except OSError as error:
            log.warning("%s: close failed: %s", label, error.strerror)

    def _retried(self, opening: Callable[[], int]) -> int:
        while True:
            try:
                return opening()
            except OSError as error:
                if error.errno not in (EMFILE, ENFILE) or not self.give_up():
                    raise

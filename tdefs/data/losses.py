"""Data that may be lost: how long it is told, and by whom.

An error of a write or a sync is told by the kernel below once, and then forgotten. A file with a loss fails every
sync until all who might rely on the lost data have closed it, and until somebody was told.
"""

from __future__ import annotations

import os


class Loss:
    """What went wrong with a file since somebody had it open."""

    __slots__ = ("_asleep", "_errno", "_kernel_tells", "_told")

    def __init__(self, errno: int, *, told: bool = False, kernel_tells: bool = False) -> None:
        """:param told: whether who asked gets the error as the answer.

        :param kernel_tells: whether the kernel got it as the answer to a write-back. It tells the next one who
            syncs, now or after opening the file again, and asks nobody; until then it asks for no sync.
        """
        self._errno = errno
        self._told = told
        self._kernel_tells = kernel_tells
        self._asleep = False

    def followed_by(self, later: Loss) -> Loss:
        """Return what is to be told after one more failure."""
        if not (self._told or self._kernel_tells):
            later._kernel_tells = later._told = False
        return later

    def tell(self, *, kernel_asks: bool) -> None:
        """Raise it, and note that it was told; nothing happens when the kernel has told it.

        :param kernel_asks: whether this is for a sync that the kernel asks for.
        :raises OSError: with the errno of the failure.
        """
        if self._asleep and kernel_asks:
            # It was closed by all, and the kernel does not ask for a sync while it has something to tell itself.
            self._told = True
            return
        self._asleep = False
        self._told = True
        raise OSError(self._errno, os.strerror(self._errno))

    def is_over_when_closed(self) -> bool:
        """Tell, when all have closed the file, whether there is nothing left to tell."""
        self._asleep = self._kernel_tells
        return self._told

    def kernel_forgot(self) -> None:
        """Note that the kernel has forgotten the file, and with it what it had to tell."""
        self._kernel_tells = self._asleep = False

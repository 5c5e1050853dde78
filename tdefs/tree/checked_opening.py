"""Opening the backing file of an inode, and nothing that somebody has put in its place.

Whatever the kernel knows already is opened by name only here. The opened file is compared before it is used.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from errno import EIO, EISDIR, ELOOP, ENODEV, ENOTDIR, ENXIO, ESTALE

from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import LoggedRefusal
from tdefs.data.descriptors import Descriptors
from tdefs.tree.inode import Inode

log = logging.getLogger(__name__)

# the errors of opening a file or a directory in whose place something of another type lies
_OF_ANOTHER_TYPE = frozenset({ELOOP, ENOTDIR, EISDIR, ENXIO, ENODEV})


class Exchanged(LoggedRefusal):
    """Somebody has put something else in the place of a file in the backing directory."""


class CheckedOpening:
    """Opens by name, and compares the opened file with the inode."""

    def __init__(self, calls: SystemCalls, descriptors: Descriptors) -> None:
        self._calls = calls
        self._descriptors = descriptors

    def open_checked(self, label: str, inode: Inode, name: bytes, flags: int, directory: int) -> int:
        """Open *name* in *directory* if it is *inode*; the name may be empty.

        :param flags: of open(2); none of them may change anything, since the check comes after.
        :raises OSError: EIO when something else lies there; the log names it. Upon ESTALE the kernel would look
            the name up again, and would use what was put there.
        """
        try:
            fd = self._descriptors.open_at(label, name, flags, 0, directory)
        except OSError as error:
            if error.errno in _OF_ANOTHER_TYPE:
                raise self.exchanged(inode) from None
            raise
        try:
            self.check(inode, self._calls.fstat("inodes:check", fd))
        except BaseException:
            with suppress(OSError):  # nothing was written through it
                os.close(fd)
            raise
        return fd

    def check(self, inode: Inode, status: os.stat_result) -> None:
        """Check that what has *status* is *inode*: device, inode number and type.

        :raises OSError: EIO when it is something else; the log names it.
        """
        if not inode.is_backed_by(status):
            raise self.exchanged(inode)

    def exchanged(self, inode: Inode) -> Exchanged:
        """Return the error for an inode in whose place something else lies; log it the first time."""
        if not inode.exchanged:
            inode.exchanged = True
            log.error(
                "%s: something else lies in its place in the backing directory since it was mounted; nothing is "
                "changed there (HINT: see who can write there; put back what lay there, or mount the volume anew)",
                inode.shown(),
            )
        return Exchanged(EIO, os.strerror(EIO))


def stale() -> OSError:
    """Return the error that makes the kernel look a name up again."""
    return OSError(ESTALE, os.strerror(ESTALE))

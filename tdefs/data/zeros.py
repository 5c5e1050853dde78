"""Files that start with zeros: whether they are plain or encrypted, and the mark that shows it.

A plain file may hold anything, zeros too, and its content is stored as it is. An encrypted file whose header was
wiped starts with zeros as well. So that the two can be distinguished, a plain file carries a mark beside its
content: an extended attribute, which goes with the file through renames and links.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES, ENODATA, ENOTSUP, EPERM

from tdefs.data.calls import SystemCalls

MARK = "user.tdefs.form"
#: The mark of a file that was made as a plain one.
_PLAIN = b"plain"
#: The mark of a file that is being encrypted, and the length in bytes of the zeros that are its content.
_ZEROS = b"zeros "

_CHUNK_SIZE = 1 << 20
_CHUNK_OF_ZEROS = bytes(_CHUNK_SIZE)
# the file system below has none, or the file's mode keeps its own owner from writing it
_NO_MARKS = (ENOTSUP, EACCES, EPERM)


class StoredDoubts:
    """Questions about an open stored file whose first bytes do not show what it is. Errors are ``OSError``."""

    def __init__(
        self,
        calls: SystemCalls,
        fd: int,
        size: int,
        should_be_encrypted: Callable[[], bool],
        had_header: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ask of an open file.

        :param should_be_encrypted: whether the policy would encrypt the file today.
        :param had_header: whether its header is known to have been on the disk.
        """
        self._calls = calls
        self._fd = fd
        self._size = size
        self.should_be_encrypted = should_be_encrypted
        self.had_header = had_header

    def is_marked_plain(self) -> bool:
        """Return whether the file was made as a plain one."""
        return self._mark() == _PLAIN

    def interrupted_length(self) -> int | None:
        """Return how many zeros the file held when tdefs began to encrypt it; ``None`` if it never did."""
        mark = self._mark()
        digits = mark.removeprefix(_ZEROS)
        return int(digits) if mark != digits and digits.isdigit() and len(digits) < 20 else None

    def is_all_zero(self) -> bool:
        """Return whether the file holds nothing but zeros; holes are not read."""
        offset = self._calls.seek_data("form:zeros", self._fd, 0)
        while offset < self._size:
            chunk = self._calls.pread("form:zeros", self._fd, min(_CHUNK_SIZE, self._size - offset), offset)
            if chunk != _CHUNK_OF_ZEROS[: len(chunk)]:
                return False
            if not chunk:
                break
            offset = self._calls.seek_data("form:zeros", self._fd, offset + len(chunk))
        return True

    def _mark(self) -> bytes:
        try:
            return self._calls.getxattr("form:mark", self._fd, MARK)
        except OSError as error:
            if error.errno in (ENODATA, *_NO_MARKS):
                return b""
            raise


def mark_plain(calls: SystemCalls, label: str, fd: int) -> None:
    """Note that an open file is a plain one.

    :raises OSError: it could not be noted, on a file system that has such marks.
    """
    _set_mark(calls, label, fd, _PLAIN)


def mark_zeros(calls: SystemCalls, label: str, fd: int, length: int) -> None:
    """Note that an open file of *length* zeros is about to be encrypted; as :func:`mark_plain`."""
    _set_mark(calls, label, fd, _ZEROS + str(length).encode())


def remove_mark(calls: SystemCalls, label: str, fd: int) -> None:
    """Take the mark away from an open file that now has a header; as :func:`mark_plain`."""
    try:
        calls.removexattr(label, fd, MARK)
    except OSError as error:
        if error.errno not in (ENODATA, *_NO_MARKS):
            raise


def _set_mark(calls: SystemCalls, label: str, fd: int, mark: bytes) -> None:
    try:
        calls.setxattr(label, fd, MARK, mark)
    except OSError as error:
        if error.errno not in _NO_MARKS:
            raise

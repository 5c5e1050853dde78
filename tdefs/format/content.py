"""The content of a file, as plaintext bytes over a store: one protocol for every form in which a file is stored.

A content has the methods, and a :class:`FileState` has what changes. The caller that has the file open owns the
state. It must let no two threads change the state at a time, and no thread read while another one changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Store(Protocol):
    """Where the stored bytes lie; offsets and sizes are stored ones, in bytes. Errors are ``OSError``."""

    def pread(self, size: int, offset: int) -> bytes:
        """Return *size* bytes from *offset* on, fewer only at the end of the file."""

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data* at *offset*, or raise."""

    def truncate(self, size: int) -> None:
        """Set the stored size."""


class FileState:
    """The data about an open file that changes, apart from its bytes."""

    __slots__ = ("is_ragged", "is_tail_written", "length")

    def __init__(self, length: int) -> None:
        #: The plaintext length in bytes.
        self.length = length
        #: Whether a write that failed may have left something behind the end, which must be cut off first.
        self.is_ragged = False
        #: Whether what is stored behind the end, up to the end of the last block, is known to be zero.
        self.is_tail_written = False


#: Consecutive stored bytes: offset and size.
Range = tuple[int, int]


class Content(Protocol):
    """The content of a file, as plaintext bytes; offsets and sizes are in bytes. Errors are ``OSError``."""

    #: The data about the file that changes, apart from its bytes.
    state: FileState

    def ranges(self, offset: int, size: int) -> Sequence[Range]:
        """Return the stored bytes that a read of *size* at *offset* needs; nothing if there is nothing to read."""

    def decode(
        self, offset: int, size: int, stored: Sequence[bytes | bytearray]
    ) -> bytes | bytearray | memoryview:
        """Return the plaintext of a read of *size* at *offset*, fewer bytes only at the end of the file.

        :param stored: the stored bytes of each of its :meth:`ranges`; there is at least one.
        :raises DamagedLength: the stored file ends before that.
        """

    def is_inside(self, offset: int, size: int) -> bool:
        """Return whether a write of *size* bytes at *offset* changes nothing but these bytes.

        Such a write leaves the state as it is, and may run beside reads and writes of other bytes.
        """

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at *offset*; bytes between the old end and *offset* become zeros."""

    def truncate(self, length: int) -> None:
        """Set the length in bytes; what is beyond the old end reads as zeros."""


def read_from(store: Store, content: Content, offset: int, size: int) -> bytes | bytearray | memoryview:
    """Return *size* bytes of plaintext from *offset* on, fewer only at the end of the file.

    :raises DamagedLength: the stored file ends before that.
    """
    ranges = content.ranges(offset, size)
    if not ranges:
        return b""
    return content.decode(offset, size, [store.pread(count, at) for at, count in ranges])

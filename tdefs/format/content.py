"""What a file holds, as plaintext bytes over a store: one protocol for every form in which a file is stored."""

from __future__ import annotations

from typing import Protocol


class Store(Protocol):
    """Where the stored bytes lie; offsets and sizes are stored ones, in bytes. Errors are ``OSError``."""

    def pread(self, size: int, offset: int) -> bytes:
        """Return *size* bytes from *offset* on, fewer only at the end of the file."""

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data* at *offset*, or raise."""

    def truncate(self, size: int) -> None:
        """Set the stored size."""


class Content(Protocol):
    """What a file holds, as plaintext bytes; offsets and sizes in bytes. Errors are ``OSError``."""

    length: int
    changes: int

    def extent(self, offset: int, size: int) -> tuple[int, int]:
        """Return stored offset and size of what a read needs."""

    def decode(self, offset: int, size: int, stored: bytes | bytearray) -> bytes | bytearray | memoryview:
        """Return the plaintext of a read from the *stored* bytes of its extent."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data*."""

    def truncate(self, length: int) -> None:
        """Set the length."""

"""One encrypted file as a sequence of plaintext bytes over a store of ciphertext.

The store is anything with pread, pwrite and truncate: a backing file, or a byte array in a test. Each method makes
its changes in an order in which a crash between any two of them, or a torn write, leaves a file of the old or the
new length whose bytes outside of the changed range are what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tdefs.format.content import Store
from tdefs.format.errors import DamagedLength
from tdefs.format.layout import (
    HEADER_SIZE,
    PAGE_SIZE,
    SECTOR_SIZE,
    blocks_end,
    ceil_to,
    filler_size,
    floor_to,
    page_of,
    plaintext_length,
    stored_offset,
    stored_size,
)
from tdefs.format.pages import PageCipher


class StoredFile:
    """An encrypted file of ``length`` plaintext bytes."""

    __slots__ = ("_begin", "_cipher", "_ragged", "_store", "_tail_is_written", "changes", "length")

    def __init__(
        self, store: Store, cipher: PageCipher, size: int, begin: Callable[[], PageCipher | None] = lambda: None
    ) -> None:
        """:param size: the stored size in bytes.
        :param begin: called each time before an empty file gets longer; returns the cipher to use from then on if
            anything was ever encrypted under the present one. Raises ``OSError``.

        :raises DamagedLength: no file of this format has that size.
        """
        self._store = store
        self._begin = begin
        self._cipher = cipher
        self._tail_is_written = False
        self._ragged = False
        self.length = plaintext_length(size)
        #: Counts changes, so that who reads ciphertext aside can tell that it went stale.
        self.changes = 0

    def extent(self, offset: int, size: int) -> tuple[int, int]:
        """Return stored offset and size in bytes of the ciphertext that a read of *size* at *offset* needs."""
        end = min(offset + size, self.length)
        if offset >= end:
            return HEADER_SIZE, 0
        start = floor_to(offset, PAGE_SIZE)
        return stored_offset(start), min(ceil_to(end, PAGE_SIZE), blocks_end(self.length)) - start

    def decode(self, offset: int, size: int, ciphertext: bytes | bytearray) -> bytes | memoryview:
        """Return the plaintext of a read of *size* at *offset*, given the *ciphertext* of its :meth:`extent`.

        :raises DamagedLength: the backing file ends before that.
        """
        at, count = self.extent(offset, size)
        if len(ciphertext) < count:
            raise DamagedLength(
                f"the file ends at {at + len(ciphertext)} stored bytes, not at {at + count} or later"
            )
        if count == 0:
            return b""
        plaintext = self._cipher.decrypt(page_of(offset), ciphertext)
        skip = offset % PAGE_SIZE
        return plaintext[skip : skip + min(size, self.length - offset)]

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return *size* bytes of plaintext from *offset* on, fewer only at the end of the file."""
        at, count = self.extent(offset, size)
        return self.decode(offset, size, self._store.pread(count, at) if count else b"")

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at plaintext *offset*; bytes between the old end and *offset* become zeros."""
        if not data:
            return
        self.changes += 1
        self._trim()
        self._use_new_cipher()
        before = self.length
        try:
            if offset > before:
                self._extend(offset)
            self._write_within(offset, data)
        except Exception:
            self._tail_is_written = False
            if self.length != before or offset + len(data) > before:
                self.length = before
                self._ragged = True
                with suppress(OSError):
                    self._trim()
            raise

    def truncate(self, length: int) -> None:
        """Set the length in bytes; what is beyond the old end reads as zeros."""
        self.changes += 1
        self._trim()
        if length > self.length:
            self._use_new_cipher()
            self._extend(length)
        elif length < self.length:
            # What stays of the last block behind *length* is old data; reads stop before it, and who makes the
            # file longer writes that block anew.
            self._tail_is_written = False
            self._store.truncate(stored_size(length))
            self.length = length

    def _use_new_cipher(self) -> None:
        """Before an empty file gets longer: see that what was ever encrypted in it was under another key."""
        if self.length == 0:
            self._cipher = self._begin() or self._cipher

    def _trim(self) -> None:
        """Cut off what a write that failed has left behind the end, which would be taken for content later."""
        if self._ragged:
            self._store.truncate(stored_size(self.length))
            self._ragged = False

    def _extend(self, length: int) -> None:
        """Make the file longer with zeros: a hole."""
        self._write_tail()
        self._store.truncate(stored_size(length))
        self.length = length

    def _write_within(self, offset: int, data: bytes) -> None:
        """Write where *offset* is not beyond the end."""
        end = offset + len(data)
        if end > self.length:
            self._write_tail()
        if offset % PAGE_SIZE == 0 and end % PAGE_SIZE == 0:
            self._store_pages(offset, data, offset, end, max(self.length, end))
        else:
            self._overlay(offset, data)

    def _write_tail(self) -> None:
        """Before the file becomes longer: see that behind its end there is nothing but zeros.

        In the last block, and in the filler, there may be what an earlier truncation left.
        """
        if self._tail_is_written or filler_size(self.length) == 0:
            return
        start = floor_to(self.length, PAGE_SIZE)
        image = bytearray(blocks_end(self.length) - start)
        image[: self.length - start] = self.read(start, self.length - start)
        first = floor_to(self.length, SECTOR_SIZE)
        last_sector = self._cipher.encrypt(page_of(start), image)[first - start :]
        self._store.pwrite(bytes(last_sector) + bytes(filler_size(self.length)), stored_offset(first))
        self._tail_is_written = True

    def _overlay(self, offset: int, data: bytes) -> None:
        """Write *data* over the plaintext of the pages that it touches; *offset* is not beyond the end."""
        end = offset + len(data)
        length = max(self.length, end)
        start = floor_to(offset, PAGE_SIZE)
        image = bytearray(min(ceil_to(end, PAGE_SIZE), blocks_end(length)) - start)
        if offset > start:
            # the first page, and with it the last one where they are the same
            old = self.read(start, min(PAGE_SIZE, len(image)))
            image[: len(old)] = old
        tail = floor_to(end, PAGE_SIZE)
        if end > tail and end < self.length and (tail > start or offset == start):
            old = self.read(tail, PAGE_SIZE)
            image[tail - start : tail - start + len(old)] = old
        image[offset - start : end - start] = data
        last = min(ceil_to(end, SECTOR_SIZE), start + len(image))
        self._store_pages(start, image, floor_to(offset, SECTOR_SIZE), last, length)

    def _store_pages(self, start: int, image: bytes | bytearray, first: int, last: int, length: int) -> None:
        """Encrypt the pages of *image*, which begins at *start*, and store its bytes from *first* to *last*.

        *first* begins a sector, and *last* ends one or the file: a sector is a hole, or encrypted from its start
        on, and a page that became all zero is a hole. The file is *length* bytes long afterwards.

        A length that is no multiple of 16 is set before its data is written, since a size that a torn write
        leaves halfway would mean another length.
        """
        ciphertext = self._cipher.encrypt(page_of(start), image)
        old_size, new_size = stored_size(self.length), stored_size(length)
        if filler_size(length) and new_size > old_size:
            self._store.truncate(new_size)
        self._store.pwrite(ciphertext[first - start : last - start], stored_offset(first))
        if new_size < old_size:
            self._store.truncate(new_size)
        self.length = length

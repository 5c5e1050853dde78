"""One encrypted file as a sequence of plaintext bytes over a store of ciphertext.

The store is anything with pread, pwrite and truncate: a backing file, or a byte array in a test. After a crash
between any two changes, or a torn write, a file has the old or the new length, and its bytes outside of the
changed range are what they were. The order of the changes in each method ensures this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from tdefs.format.content import FileState, Range, Store, read_from
from tdefs.format.errors import DamagedLength
from tdefs.format.layout import PAGE_SIZE, SECTOR_SIZE, ceil_to, floor_to, page_of
from tdefs.format.suite1.layout import blocks_end, filler_size, stored_offset, stored_size
from tdefs.format.suite1.pages import PageCipher


class XtsContent:
    """The content of an encrypted file."""

    __slots__ = ("_begin", "_cipher", "_store", "state")

    def __init__(
        self,
        store: Store,
        state: FileState,
        cipher: PageCipher,
        begin: Callable[[], PageCipher | None] = lambda: None,
    ) -> None:
        """:param state: the file's length, and what else changes; the caller owns it.
        :param begin: called each time before an empty file gets longer. It returns the cipher to use from then on
            if anything was ever encrypted under the present one. Its errors are ``OSError``.
        """
        self._store = store
        self.state = state
        self._begin = begin
        self._cipher = cipher

    def ranges(self, offset: int, size: int) -> Sequence[Range]:
        """Return the range of the ciphertext that a read of *size* at *offset* needs; none if it needs nothing."""
        length = self.state.length
        end = offset + size
        if end <= length and size and not (offset % PAGE_SIZE or size % PAGE_SIZE):
            return ((stored_offset(offset), size),)
        end = min(end, length)
        if offset >= end:
            return ()
        start = floor_to(offset, PAGE_SIZE)
        return ((stored_offset(start), min(ceil_to(end, PAGE_SIZE), blocks_end(length)) - start),)

    def decode(self, offset: int, size: int, stored: Sequence[bytes | bytearray]) -> bytes | memoryview:
        """Return the plaintext of a read of *size* at *offset*, given the ciphertext of its :meth:`ranges`.

        :raises DamagedLength: the backing file ends before that.
        """
        ranges = self.ranges(offset, size)
        if not ranges:
            return b""
        (at, count), ciphertext = ranges[0], stored[0]
        if len(ciphertext) < count:
            raise DamagedLength(
                f"the file ends at {at + len(ciphertext)} stored bytes, not at {at + count} or later"
            )
        plaintext = self._cipher.decrypt(page_of(offset), ciphertext)
        skip = offset % PAGE_SIZE
        return plaintext[skip : skip + min(size, self.state.length - offset)]

    def is_inside(self, offset: int, size: int) -> bool:
        """Return whether a write changes only whole pages that the file has, and nothing must be cut off first."""
        state = self.state
        return not (offset % PAGE_SIZE or size % PAGE_SIZE or state.is_ragged) and offset + size <= state.length

    def _read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        return read_from(self._store, self, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at plaintext *offset*; bytes between the old end and *offset* become zeros."""
        if not data:
            return
        if self.is_inside(offset, len(data)):
            # most writes: nothing of the state is looked at or changed
            self._store.pwrite(self._cipher.encrypt(page_of(offset), data), stored_offset(offset))
            return
        self._trim()
        self._use_new_cipher()
        before = self.state.length
        try:
            if offset > before:
                self._extend(offset)
            self._write_within(offset, data)
        except Exception:
            self.state.is_tail_written = False
            if self.state.length != before or offset + len(data) > before:
                self.state.length = before
                self.state.is_ragged = True
                with suppress(OSError):
                    self._trim()
            raise

    def truncate(self, length: int) -> None:
        """Set the length in bytes; what is beyond the old end reads as zeros."""
        self._trim()
        if length > self.state.length:
            self._use_new_cipher()
            self._extend(length)
        elif length < self.state.length:
            # What stays of the last block behind *length* is old data. Reads stop before it, and before the file
            # becomes longer that block is written anew.
            self.state.is_tail_written = False
            self._store.truncate(stored_size(length))
            self.state.length = length

    def _use_new_cipher(self) -> None:
        """Before an empty file gets longer: use a cipher under which nothing was ever encrypted."""
        if self.state.length == 0:
            self._cipher = self._begin() or self._cipher

    def _trim(self) -> None:
        """Cut off what a failed write has left behind the end: it would look like content later."""
        if self.state.is_ragged:
            self._store.truncate(stored_size(self.state.length))
            self.state.is_ragged = False

    def _extend(self, length: int) -> None:
        """Make the file longer with zeros: a hole."""
        self._write_tail()
        self._store.truncate(stored_size(length))
        self.state.length = length

    def _write_within(self, offset: int, data: bytes) -> None:
        """Write where *offset* is not beyond the end."""
        end = offset + len(data)
        if end > self.state.length:
            self._write_tail()
        if offset % PAGE_SIZE == 0 and end % PAGE_SIZE == 0:
            self._store_pages(offset, data, offset, end, max(self.state.length, end))
        else:
            self._overlay(offset, data)

    def _write_tail(self) -> None:
        """Before the file becomes longer: fill the rest of its last block, and the filler, with zeros.

        An earlier truncation may have left old data there.
        """
        if self.state.is_tail_written or filler_size(self.state.length) == 0:
            return
        start = floor_to(self.state.length, PAGE_SIZE)
        image = bytearray(blocks_end(self.state.length) - start)
        image[: self.state.length - start] = self._read(start, self.state.length - start)
        first = floor_to(self.state.length, SECTOR_SIZE)
        last_sector = self._cipher.encrypt(page_of(start), image)[first - start :]
        self._store.pwrite(bytes(last_sector) + bytes(filler_size(self.state.length)), stored_offset(first))
        self.state.is_tail_written = True

    def _overlay(self, offset: int, data: bytes) -> None:
        """Write *data* over the plaintext of the pages that it touches; *offset* is not beyond the end."""
        end = offset + len(data)
        length = max(self.state.length, end)
        start = floor_to(offset, PAGE_SIZE)
        image = bytearray(min(ceil_to(end, PAGE_SIZE), blocks_end(length)) - start)
        if offset > start:
            # the first page, and with it the last one where they are the same
            old = self._read(start, min(PAGE_SIZE, len(image)))
            image[: len(old)] = old
        tail = floor_to(end, PAGE_SIZE)
        if end > tail and end < self.state.length and (tail > start or offset == start):
            old = self._read(tail, PAGE_SIZE)
            image[tail - start : tail - start + len(old)] = old
        image[offset - start : end - start] = data
        last = min(ceil_to(end, SECTOR_SIZE), start + len(image))
        self._store_pages(start, image, floor_to(offset, SECTOR_SIZE), last, length)

    def _store_pages(self, start: int, image: bytes | bytearray, first: int, last: int, length: int) -> None:
        """Encrypt the pages of *image*, which begins at *start*, and store its bytes from *first* to *last*.

        *first* begins a sector, and *last* ends one or the file: a sector is a hole, or encrypted from its start
        on, and a page that became all zero is a hole. The file is *length* bytes long afterwards.

        A length that is not a multiple of 16 is set before its data is written. Otherwise a torn write could leave
        a size that means another length.
        """
        ciphertext = self._cipher.encrypt(page_of(start), image)
        old_size, new_size = stored_size(self.state.length), stored_size(length)
        if filler_size(length) and new_size > old_size:
            self._store.truncate(new_size)
        self._store.pwrite(ciphertext[first - start : last - start], stored_offset(first))
        if new_size < old_size:
            self._store.truncate(new_size)
        self.state.length = length

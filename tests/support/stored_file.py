"""A file of suite 1 over any store, without a descriptor and without a lock."""

from __future__ import annotations

from tdefs.format.content import FileState, Store, read_from
from tdefs.format.suite1.content import XtsContent
from tdefs.format.suite1.layout import plaintext_length
from tdefs.format.suite1.pages import PageCipher


class StoredFile:
    """An encrypted file of :attr:`length` plaintext bytes."""

    def __init__(self, store: Store, cipher: PageCipher, size: int) -> None:
        """:param size: the stored size in bytes."""
        self._store = store
        self._state = FileState(plaintext_length(size))
        self._content = XtsContent(store, self._state, cipher)

    @property
    def length(self) -> int:
        return self._state.length

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        return read_from(self._store, self._content, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._content.write(offset, data)

    def truncate(self, length: int) -> None:
        self._content.truncate(length)

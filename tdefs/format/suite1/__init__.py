"""Cipher suite 1: pages under AES-256-XTS with the page's number as tweak; nothing authenticates them."""

from __future__ import annotations

from collections.abc import Callable

from tdefs.format.content import FileState, Store
from tdefs.format.suite1 import layout
from tdefs.format.suite1.content import XtsContent
from tdefs.format.suite1.pages import PageCipher, page_cipher


class Suite1:
    """How files of suite 1 are stored."""

    number = 1
    name = "aes-256-xts"
    #: A file key is HKDF-SHA256 of the data key's 32 bytes, without salt, with 45 bytes of info: these 29, and the
    #: 16 of the file id. Bytes 0 to 31 of it are the XTS data key (K1), bytes 32 to 63 the tweak key (K2).
    file_key_purpose = b"tdefs v1 file key aes-256-xts"
    file_key_bytes = 64

    def stored_size(self, length: int) -> int:
        """Return the stored size in bytes, header page included, of a file of *length* plaintext bytes."""
        return layout.stored_size(length)

    def plaintext_length(self, size: int) -> int:
        """Return the plaintext length in bytes of a file of *size* stored bytes.

        :raises DamagedLength: no length is stored in that many bytes (the file was cut).
        """
        return layout.plaintext_length(size)

    def content(
        self, store: Store, state: FileState, file_key: bytes, begin: Callable[[], bytes | None]
    ) -> XtsContent:
        """Return the content of a file; see :meth:`tdefs.format.suites.Suite.content`."""

        def begin_with_cipher() -> PageCipher | None:
            new_key = begin()
            return None if new_key is None else page_cipher(new_key)

        return XtsContent(store, state, page_cipher(file_key), begin_with_cipher)

"""Cipher suite 1: pages under AES-256-XTS, the page number as tweak, zero sectors as holes.

A page is one XTS data unit; its tweak is the page's number in the file as 16 bytes, little-endian. The last page
of a file may be shorter, but is always a multiple of 16 bytes here. So there is no ciphertext stealing, and each
16-byte block depends only on the key, the page number, its position and its own plaintext.

Zeros are holes, by sectors (512 bytes at a multiple of 512; the last sector of a file may be shorter): in each
sector, the all-zero blocks of ciphertext at its end read as zeros. XTS makes an all-zero block with probability
2**-128, so the rule never hides data. Disks write whole sectors. So also after a torn write each sector is a hole
up to its end, or was encrypted from its start.

There are two implementations of one behaviour: one in Python over ``cryptography``, and a compiled one, which is
three times as fast and exists if tdefs was installed with a C compiler and OpenSSL's headers. :data:`page_cipher`
is the better one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tdefs.format.layout import PAGE_SIZE, SECTOR_SIZE, ceil_to
from tdefs.format.suite1.layout import BLOCK_SIZE

_ZERO_PAGE = bytes(PAGE_SIZE)
_ZERO_BLOCK = bytes(BLOCK_SIZE)


log = logging.getLogger(__name__)


class PageCipher(Protocol):
    """Encrypts and decrypts runs of pages with one file key; may be used by several threads at once."""

    def encrypt(self, first_page: int, plaintext: bytes | bytearray) -> bytes | memoryview:
        """Return the ciphertext of consecutive pages, of the same size as *plaintext*.

        *plaintext* starts at the start of page *first_page*, and its length is a multiple of 16. Pages of zeros
        stay zeros.
        """

    def decrypt(self, first_page: int, ciphertext: bytes | bytearray) -> bytes | memoryview:
        """Return the plaintext of consecutive pages; the reverse of :meth:`encrypt`."""


class PythonPageCipher:
    """The cipher suite over ``cryptography``."""

    __slots__ = ("_aes",)

    def __init__(self, file_key: bytes) -> None:
        """:param file_key: 64 bytes, as AES-256-XTS takes two keys."""
        self._aes = algorithms.AES(file_key)

    def encrypt(self, first_page: int, plaintext: bytes | bytearray) -> memoryview:
        """Return the ciphertext of consecutive pages."""
        size = len(plaintext)
        source = memoryview(plaintext)
        # update_into() wants room for one block more than it writes
        target = memoryview(bytearray(size + BLOCK_SIZE))
        page = first_page
        for start in range(0, size, PAGE_SIZE):
            if not _is_zero(plaintext, start, PAGE_SIZE):
                tweak = modes.XTS(page.to_bytes(16, "little"))
                cipher = Cipher(self._aes, tweak).encryptor()
                cipher.update_into(source[start : start + PAGE_SIZE], target[start:])
            page += 1
        return target[:size]

    def decrypt(self, first_page: int, ciphertext: bytes | bytearray) -> memoryview:
        """Return the plaintext of consecutive pages."""
        size = len(ciphertext)
        source = memoryview(ciphertext)
        target = memoryview(bytearray(size + BLOCK_SIZE))
        # the whole run is checked first: if it has no hole, no page needs a check of its own
        holes = _has_holes(ciphertext)
        page = first_page
        for start in range(0, size, PAGE_SIZE):
            if not (holes and _is_zero(ciphertext, start, PAGE_SIZE)):
                tweak = modes.XTS(page.to_bytes(16, "little"))
                cipher = Cipher(self._aes, tweak).decryptor()
                cipher.update_into(source[start : start + PAGE_SIZE], target[start:])
                if holes:
                    _clear_holes(ciphertext, start, min(start + PAGE_SIZE, size), target)
            page += 1
        return target[:size]


def _has_holes(ciphertext: bytes | bytearray) -> bool:
    """Return whether any sector ends in a zero block; the last one may be shorter."""
    last_bytes = ciphertext[SECTOR_SIZE - 1 :: SECTOR_SIZE]
    at = last_bytes.find(0)
    while at >= 0:
        end = (at + 1) * SECTOR_SIZE
        if ciphertext[end - BLOCK_SIZE : end] == _ZERO_BLOCK:
            return True
        at = last_bytes.find(0, at + 1)
    return len(ciphertext) % SECTOR_SIZE > 0 and ciphertext[-BLOCK_SIZE:] == _ZERO_BLOCK


def _is_zero(data: bytes | bytearray, start: int, size: int) -> bool:
    """Return whether the *size* bytes of *data* from *start* on are all zero; there may be fewer."""
    size = min(size, len(data) - start)
    zeros = _ZERO_PAGE if size == PAGE_SIZE else _ZERO_PAGE[:size]
    # startswith() at an offset compares in place, where a slice would copy
    return data.startswith(zeros, start)


def _clear_holes(ciphertext: bytes | bytearray, start: int, end: int, plaintext: memoryview) -> None:
    """Set the holes of *plaintext* from *start* to *end* to zero, by the module's rule."""
    for sector in range(start, end, SECTOR_SIZE):
        stop = min(sector + SECTOR_SIZE, end)
        used = len(ciphertext[sector:stop].rstrip(b"\0"))
        hole = sector + ceil_to(used, BLOCK_SIZE)
        plaintext[hole:stop] = bytes(stop - hole)


def _known_answers(make: Callable[[bytes], PageCipher]) -> list[bytes]:
    """Return what a cipher makes of pages, zeros, holes and a short last page."""
    cipher = make(bytes(range(64)))
    pages = bytes(range(256)) * 64 + _ZERO_PAGE + bytes(range(48))
    ciphertext = bytes(cipher.encrypt(2**40, pages))
    holed = ciphertext[:1000].ljust(PAGE_SIZE, b"\0") + ciphertext[PAGE_SIZE:] + bytes(BLOCK_SIZE)
    return [ciphertext, bytes(cipher.decrypt(2**40, ciphertext)), bytes(cipher.decrypt(2**40, holed))]


def best_page_cipher() -> Callable[[bytes], PageCipher]:
    """Return the compiled cipher if it exists and gives the same results as the one in Python."""
    try:
        from tdefs.format._compiled import CompiledPageCipher
    except ImportError as error:
        log.debug("no compiled page cipher: %s", error)
        return PythonPageCipher
    try:
        right = _known_answers(CompiledPageCipher) == _known_answers(PythonPageCipher)
    except Exception as error:
        log.warning("the compiled page cipher fails its test: %s", error)
        return PythonPageCipher
    if not right:
        log.warning("the compiled page cipher fails its test: using the one in Python")
        return PythonPageCipher
    return CompiledPageCipher


#: Makes a cipher from a file key of 64 bytes, as AES-256-XTS takes two keys.
page_cipher: Callable[[bytes], PageCipher] = best_page_cipher()

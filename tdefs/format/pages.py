"""Cipher suite 1: pages under AES-256-XTS, the page number as tweak, zero sectors as holes.

A page is one XTS data unit; its tweak is the page's number in the file as 16 bytes, little-endian. The last page
of a file may be shorter, but is always a multiple of 16 bytes here, so ciphertext stealing never happens and each
16-byte block depends on the key, the page number, its position and its own plaintext alone.

Zeros are holes, by sectors (512 bytes at a multiple of 512, or the blocks that the file has of its last one): the
blocks behind the last block of a sector whose ciphertext is not all zero read as zeros. XTS makes an all-zero
block with probability 2**-128, so the rule never hides data. Disks write sectors whole, so after a torn write too
each sector is either a hole, to its end, or was encrypted from its start.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tdefs.format.layout import BLOCK_SIZE, PAGE_SIZE, SECTOR_SIZE, ceil_to

_ZERO_PAGE = bytes(PAGE_SIZE)
_ZERO_BLOCK = bytes(BLOCK_SIZE)


class PageCipher:
    """Encrypts and decrypts runs of pages with one file key."""

    __slots__ = ("_aes",)

    def __init__(self, file_key: bytes) -> None:
        """:param file_key: 64 bytes, as AES-256-XTS takes two keys."""
        self._aes = algorithms.AES(file_key)

    def encrypt(self, first_page: int, plaintext: bytes | bytearray) -> memoryview:
        """Return the ciphertext of consecutive pages, of the same size as *plaintext*.

        *plaintext* starts at the start of page *first_page*, and its length is a multiple of 16. Pages of zeros
        stay zeros.
        """
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
        """Return the plaintext of consecutive pages; the reverse of :meth:`encrypt`."""
        size = len(ciphertext)
        source = memoryview(ciphertext)
        target = memoryview(bytearray(size + BLOCK_SIZE))
        # one search over the whole run: without a zero block anywhere, no page needs a closer look
        holes = _ZERO_BLOCK in ciphertext
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


def _is_zero(data: bytes | bytearray, start: int, size: int) -> bool:
    """Tell whether the *size* bytes of *data* from *start* on, or those that there are, are all zero."""
    size = min(size, len(data) - start)
    zeros = _ZERO_PAGE if size == PAGE_SIZE else _ZERO_PAGE[:size]
    # startswith() at an offset compares in place, where a slice would copy
    return data.startswith(zeros, start)


def _clear_holes(ciphertext: bytes | bytearray, start: int, end: int, plaintext: memoryview) -> None:
    """Set to zero what of *plaintext* from *start* to *end* are holes by the module's rule."""
    for sector in range(start, end, SECTOR_SIZE):
        stop = min(sector + SECTOR_SIZE, end)
        used = len(ciphertext[sector:stop].rstrip(b"\0"))
        hole = sector + ceil_to(used, BLOCK_SIZE)
        plaintext[hole:stop] = bytes(stop - hole)

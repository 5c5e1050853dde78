"""Offsets and lengths in suite 1: where a plaintext byte is stored, and what length a stored size means.

A stored file is a header page followed by the data. Within the data, plaintext offset and stored offset are the
same, so page *k* is stored at ``8192 * (k + 1)``:

    | header page (8192) | page 0 (8192) | page 1 (8192) | ... | last page | filler |

The cipher works on blocks of 16 bytes. A file whose length is no multiple of 16 has its last block filled up to
16 bytes, and ``length % 16`` filler bytes behind it, so that the stored size alone gives the length (see
docs/FORMAT.md for why this holds after a crash between any two writes).

All quantities are bytes unless a name says page. *data size* is the stored size without the header page.
"""

from __future__ import annotations

from tdefs.format.errors import DamagedLength
from tdefs.format.layout import HEADER_SIZE, ceil_to

BLOCK_SIZE = 16


def stored_offset(offset: int) -> int:
    """Return where plaintext byte *offset* is stored."""
    return HEADER_SIZE + offset


def filler_size(length: int) -> int:
    """Return how many filler bytes follow the last block of a file of *length* bytes."""
    return length % BLOCK_SIZE


def blocks_end(length: int) -> int:
    """Return the data offset behind the last cipher block of a file of *length* bytes."""
    return ceil_to(length, BLOCK_SIZE)


def stored_size(length: int) -> int:
    """Return the stored size, header page included, of a file of *length* plaintext bytes."""
    return HEADER_SIZE + blocks_end(length) + filler_size(length)


def plaintext_length(size: int) -> int:
    """Return the plaintext length of an encrypted file of stored *size* bytes.

    :raises DamagedLength: no length is stored in that many bytes (the file was cut).
    """
    data = size - HEADER_SIZE
    if data < 0:
        raise DamagedLength(f"the file is cut inside its header page: {size} of {HEADER_SIZE} bytes are left")
    if data % BLOCK_SIZE == 0:
        return data
    if data < BLOCK_SIZE:
        raise DamagedLength(f"the file is cut inside its first block: {data} of {BLOCK_SIZE} bytes are left")
    return data - BLOCK_SIZE

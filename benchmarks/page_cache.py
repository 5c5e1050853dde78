"""What the kernel's page cache holds of a file, from mincore(2)."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def cached_bytes(path: Path) -> int:
    """Return how many bytes of a file are in the page cache."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        # A private mapping that nobody touches: looking reads no page in.
        start = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        error = ctypes.get_errno()
        del start  # a mapping with a pointer into it cannot be closed
        if failed:
            raise OSError(error, os.strerror(error), str(path))
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def cached_bytes_below(directory: Path, least: int) -> int:
    """Return how many bytes of the large files below a directory are in the page cache.

    :param least: the size of the smallest file that counts, in bytes
    """
    return sum(cached_bytes(path) for path in large_files(directory, least))


def large_files(directory: Path, least: int) -> Iterator[Path]:
    """Yield the files below a directory, on the same file system, that have at least so many bytes."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink() and path.is_file() and path.stat().st_size >= least:
                yield path

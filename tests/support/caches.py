"""The kernel's caches, which all tests on the machine share: some empty them, some count on what is in them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = Path(__file__)


@contextmanager
def kept_caches() -> Iterator[None]:
    """During the block no test of another process empties them."""
    with _LOCK.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def drop_caches(what: int) -> None:
    """Have the kernel drop its caches. For root alone.

    :param what: 1 for the contents of files, 2 for names and inodes, 3 for both (proc(5))
    """
    with _LOCK.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path("/proc/sys/vm/drop_caches").write_text(f"{what}")

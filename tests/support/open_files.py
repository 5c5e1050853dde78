"""An open file of suite 1 on a real backing file, without a tree: for tests of what reads and writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tdefs.data.backing_store import BackingStore
from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.losses import Losses
from tdefs.format.content import FileState
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suite1 import Suite1

KEY = bytes(range(64))


def open_new(path: Path, calls: SystemCalls, begin: Callable[[], bytes | None] = lambda: None) -> DataFile:
    """Make an empty encrypted file at *path* and open it. The caller closes its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, HEADER_SIZE)
    state = FileState(0)
    content = Suite1().content(BackingStore(calls, fd), state, KEY, begin)
    return DataFile(fd, content, os.fstat(fd), Losses(), lambda: None, writable=True, names_durable=True)

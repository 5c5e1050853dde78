"""Open files: the content of one file over one backing descriptor, which all its handles share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import trio

from tdefs.data.losses import Losses
from tdefs.data.shared_lock import SharedLock
from tdefs.format.content import Content, FileState


class DataFile:
    """An open backing file, and what is read and written through it. It knows no names and no inode.

    It owns all that changes of the file: descriptor, content, length, what a failed write left behind the end, the
    number of changes, the bytes that are not synced, and the loss. Several threads may use it:

    - A write that makes the file longer or changes parts of pages, a truncation, and an exchange of content or
      descriptor hold the lock alone.
    - A write of whole pages inside the file shares the lock. The kernel never lets two such writes of one page run
      at a time.
    - A read that need not wait shares the lock. One that waits for the disk holds none. Both compare
      :attr:`changes` before and after, and are done again, with the lock held alone, if they differ.
    """

    __slots__ = (
        "_counts",
        "_lock",
        "_state",
        "_writing",
        "changes",
        "content",
        "direct",
        "fd",
        "handles",
        "losses",
        "names_durable",
        "status",
        "sync_names",
        "syncing",
        "unsynced",
        "writable",
    )

    def __init__(
        self,
        fd: int,
        content: Content,
        state: FileState,
        status: os.stat_result,
        losses: Losses,
        sync_names: Callable[[], None],
        *,
        writable: bool,
        names_durable: bool,
    ) -> None:
        """Take over *fd*.

        :param state: what changes of *content*.
        :param losses: what may be lost of it, also from when it was open before.
        :param sync_names: makes the directory entries above the file durable; raises ``OSError``. It is called on
            the event loop, and only while *names_durable* is not set.
        """
        #: The attributes as they were when they were last asked for.
        self.status = status
        self.fd = fd
        self.content = content
        self.losses = losses
        self.sync_names = sync_names
        self.writable = writable
        #: Whether all directory entries above the file are on the disk. The tree sets it.
        self.names_durable = names_durable
        self.handles = 0
        #: Whether the kernel's cache is bypassed: the same for all handles that are open at a time.
        self.direct = False
        #: Set while a sync runs beside the event loop: the kernel below reports an error to one sync only.
        self.syncing: trio.Event | None = None
        #: Bytes written since the last sync.
        self.unsynced = 0
        #: How many changes have begun.
        self.changes = 0
        self._state = state
        self._lock = SharedLock()
        #: Protects the counts.
        self._counts = Lock()
        #: How many writes of whole pages are under way.
        self._writing = 0

    @property
    def length(self) -> int:
        """The plaintext length in bytes."""
        return self._state.length

    # --- reading

    @property
    def settled_changes(self) -> int:
        """The number of changes, for a read that begins; -1, which it is never later, while pages are written."""
        changes = self.changes
        return -1 if self._writing else changes

    def share(self) -> None:
        """Begin a read that does not wait: until :meth:`end_sharing` only whole pages inside the file change."""
        self._lock.acquire_shared()

    def end_sharing(self) -> None:
        """End what :meth:`share` began."""
        self._lock.release_shared()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let no other thread read or change the file for the time of a ``with`` block."""
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    # --- changing

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at plaintext *offset*. Raises ``OSError``."""
        self._lock.acquire_shared()
        try:
            if self.content.is_inside(offset, len(data)):
                self._write_inside(offset, data)
                return
        finally:
            self._lock.release_shared()
        self._lock.acquire()
        try:
            self.changes += 1
            self.content.write(offset, data)
            with self._counts:
                self.unsynced += len(data)
        finally:
            self._lock.release()

    def _write_inside(self, offset: int, data: bytes) -> None:
        with self._counts:
            # in this order: see settled_changes
            self._writing += 1
            self.changes += 1
        try:
            self.content.write(offset, data)
        finally:
            with self._counts:
                self._writing -= 1
                self.unsynced += len(data)

    def truncate(self, length: int) -> None:
        """Set the plaintext length. Raises ``OSError``."""
        with self.changed_alone():
            self.content.truncate(length)

    @contextmanager
    def changed_alone(self) -> Iterator[None]:
        """Be :meth:`frozen` for the time of a ``with`` block that changes the file."""
        with self.frozen():
            self.changes += 1
            yield

    def exchange(self, content: Content, state: FileState) -> None:
        """Use another content from now on. The caller is inside :meth:`changed_alone`."""
        self.content = content
        self._state = state

    # --- syncing

    def take_unsynced(self) -> int:
        """Return how many bytes were written since the last call."""
        with self._counts:
            unsynced, self.unsynced = self.unsynced, 0
        return unsynced


@dataclass(frozen=True, slots=True)
class Handle:
    """What the kernel calls a file handle: an open file, and how it was opened."""

    file: DataFile
    flags: int

    @property
    def durable_writes(self) -> bool:
        """Return whether each write must be durable when it returns (O_DSYNC, of which O_SYNC is a superset)."""
        return bool(self.flags & os.O_DSYNC)

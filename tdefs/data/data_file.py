"""Open files: the content of one file over one backing descriptor, which all its handles share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from tdefs.data.change_lock import ChangeLock
from tdefs.data.losses import Losses
from tdefs.format.content import Content


class DataFile:
    """An open backing file, and what is read and written through it. It knows no names and no inode.

    It owns everything about the file that changes: descriptor, content, length, what a failed write left behind
    the end, the number of changes, the bytes that are not synced, and the loss. Several threads may use it:

    - A write that makes the file longer or changes parts of pages, a truncation, and an exchange of content or
      descriptor hold the lock alone.
    - A write of whole pages inside the file shares the lock. The kernel never lets two such writes of one page run
      at a time.
    - A read that need not wait shares the lock. One that waits for the disk holds none. Both compare the number of
      changes before and after. If it differs, the read is done again, with the lock held alone.
    """

    __slots__ = (
        "content",
        "direct",
        "fd",
        "lock",
        "losses",
        "names_durable",
        "status",
        "sync_names",
        "syncing",
        "writable",
    )

    def __init__(
        self,
        fd: int,
        content: Content,
        status: os.stat_result,
        losses: Losses,
        sync_names: Callable[[], None],
        *,
        writable: bool,
        names_durable: bool,
    ) -> None:
        """Take over *fd*.

        :param losses: data of the file that may be lost, also since an earlier opening.
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
        #: Whether the kernel's cache is bypassed: the same for all handles that are open at a time.
        self.direct = False
        #: Set while a sync runs beside the event loop: the kernel below reports an error to one sync only.
        self.syncing: trio.Event | None = None
        self.lock = ChangeLock()

    @property
    def length(self) -> int:
        """The plaintext length in bytes."""
        return self.content.state.length

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at plaintext *offset*.

        :raises OSError: only a part was written, or nothing.
        """
        lock, size = self.lock, len(data)
        lock.begin_pages()
        written = 0
        try:
            if self.content.is_inside(offset, size):
                written = size
                self.content.write(offset, data)
                return
        finally:
            lock.end_pages(written)
        lock.acquire_for_change()
        try:
            self.content.write(offset, data)
        finally:
            lock.release(size)

    def truncate(self, length: int) -> None:
        """Set the plaintext length.

        :raises OSError: the length may be the old one.
        """
        with self.changed_alone():
            self.content.truncate(length)

    @contextmanager
    def changed_alone(self) -> Iterator[None]:
        """Keep all other threads from the file during a ``with`` block that changes it."""
        self.lock.acquire_for_change()
        try:
            yield
        finally:
            self.lock.release()

    def exchange(self, content: Content) -> None:
        """Use another content from now on. The caller is inside :meth:`changed_alone`."""
        self.content = content

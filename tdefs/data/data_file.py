"""Open files: the content of one file over one backing descriptor, which all its handles share."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from tdefs.data.losses import Losses
from tdefs.format.content import Content


class DataFile:
    """An open backing file, and what is read and written through it. It knows no names and no inode."""

    __slots__ = (
        "content",
        "direct",
        "fd",
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
        status: os.stat_result,
        losses: Losses,
        sync_names: Callable[[], None],
        *,
        writable: bool,
        names_durable: bool,
    ) -> None:
        """Take over *fd*.

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
        #: Whether the kernel's cache is bypassed: the same for all handles that are open at a time.
        self.direct = False
        #: Set while a sync runs beside the event loop: the kernel below reports an error to one sync only.
        self.syncing: trio.Event | None = None
        #: Bytes written since the last sync.
        self.unsynced = 0

    @property
    def length(self) -> int:
        """The plaintext length in bytes."""
        return self.content.length

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data* at plaintext *offset*. Raises ``OSError``."""
        self.content.write(offset, data)
        self.unsynced += len(data)

    def truncate(self, length: int) -> None:
        """Set the plaintext length. Raises ``OSError``."""
        self.content.truncate(length)

    def exchange(self, content: Content) -> None:
        """Use another *content*; a read that has not returned yet is done again."""
        before = self.content
        self.content = content
        before.changes += 1

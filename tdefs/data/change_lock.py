"""The lock of an open file: which threads may read and change it at a time, and how often it was changed."""

from __future__ import annotations

from threading import Condition, Lock


class ChangeLock:
    """A lock that many threads share, or one holds alone; not reentrant. It counts the changes made under it.

    No thread waits for ever. A thread that waits to hold it alone keeps out those that come to share it. When it
    releases the lock, those that wait to share it at that moment come before the next one that wants it alone.
    """

    __slots__ = (
        "_admitted",
        "_is_held",
        "_mutex",
        "_released",
        "_sharing",
        "_waiting",
        "_waiting_to_share",
        "_writing",
        "changes",
        "unsynced",
    )

    def __init__(self) -> None:
        self._mutex = Lock()
        self._released = Condition(self._mutex)
        self._sharing = 0
        self._writing = 0
        self._waiting = 0
        self._waiting_to_share = 0
        #: How many may share the lock before the next thread holds it alone.
        self._admitted = 0
        self._is_held = False
        #: How many changes have begun.
        self.changes = 0
        #: Bytes written since the last sync.
        self.unsynced = 0

    def share(self) -> int:
        """Wait until no thread holds the lock alone, and share it for a read.

        :returns: the number of changes so far, to be compared with :attr:`changes` after the read. While pages are
            being written it is -1, which is never equal.
        """
        with self._mutex:
            if self._is_held or self._waiting:
                self._wait_to_share()
            self._sharing += 1
            return -1 if self._writing else self.changes

    def end_sharing(self) -> None:
        """End what :meth:`share` began."""
        with self._mutex:
            self._sharing -= 1
            if self._waiting and not self._sharing:
                self._released.notify_all()

    def begin_pages(self) -> None:
        """Wait until no thread holds the lock alone, and share it for a write of whole pages."""
        with self._mutex:
            if self._is_held or self._waiting:
                self._wait_to_share()
            self._sharing += 1
            self._writing += 1
            self.changes += 1

    def end_pages(self, written: int) -> None:
        """End what :meth:`begin_pages` began.

        :param written: how many bytes are to be synced now.
        """
        with self._mutex:
            self._sharing -= 1
            self._writing -= 1
            self.unsynced += written
            if self._waiting and not self._sharing:
                self._released.notify_all()

    def acquire(self) -> None:
        """Wait until no other thread has the lock in any way, and hold it alone."""
        with self._mutex:
            if self._is_held or self._sharing or self._admitted:
                self._waiting += 1
                try:
                    while self._is_held or self._sharing or self._admitted:
                        self._released.wait()
                finally:
                    self._waiting -= 1
            self._is_held = True

    def acquire_for_change(self) -> None:
        """Hold the lock alone, and count a change."""
        self.acquire()
        self.changes += 1

    def release(self, written: int = 0) -> None:
        """End holding the lock alone.

        :param written: how many bytes are to be synced now.
        """
        with self._mutex:
            self._is_held = False
            self._admitted = self._waiting_to_share
            self.unsynced += written
            self._released.notify_all()

    def take_unsynced(self) -> int:
        """Return how many bytes were written since the last call."""
        with self._mutex:
            unsynced, self.unsynced = self.unsynced, 0
        return unsynced

    def _wait_to_share(self) -> None:
        """Wait until the lock may be shared. The caller has the mutex."""
        self._waiting_to_share += 1
        try:
            while self._is_held or (self._waiting and not self._admitted):
                self._released.wait()
        except BaseException:
            self._released.notify_all()
            raise
        finally:
            self._waiting_to_share -= 1
            self._admitted = max(0, self._admitted - 1)

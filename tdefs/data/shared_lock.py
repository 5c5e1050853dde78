"""A lock that many threads share, or one holds alone."""

from __future__ import annotations

from threading import Lock


class SharedLock:
    """Shared by many threads, or held by one alone; not reentrant.

    A thread that waits to hold it alone keeps out those that come to share it, so it is not kept waiting for ever.
    """

    __slots__ = ("_count", "_emptied", "_entry", "_is_awaited", "_sharing")

    def __init__(self) -> None:
        #: Held while a thread enters, and for as long as one thread holds the lock alone, or waits for that.
        self._entry = Lock()
        #: Protects the two fields below.
        self._count = Lock()
        self._sharing = 0
        self._is_awaited = False
        #: Released by the last thread that shared the lock, for the one that waits.
        self._emptied = Lock()
        self._emptied.acquire()

    def acquire_shared(self) -> None:
        """Wait until no thread holds the lock alone, and share it."""
        with self._entry, self._count:
            self._sharing += 1

    def release_shared(self) -> None:
        """End sharing."""
        with self._count:
            self._sharing -= 1
            if self._is_awaited and not self._sharing:
                self._is_awaited = False
                self._emptied.release()

    def acquire(self) -> None:
        """Wait until no other thread has the lock in any way, and hold it alone."""
        self._entry.acquire()
        with self._count:
            if not self._sharing:
                return
            self._is_awaited = True
        self._emptied.acquire()

    def release(self) -> None:
        """End holding the lock alone."""
        self._entry.release()

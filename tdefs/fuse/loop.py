"""Serving FUSE requests quickly: all code that depends on pyfuse3's internals.

pyfuse3 3.5 serves requests with a pool of tasks. Before each read of the FUSE descriptor a task calls the module's
function ``_wait_fuse_readable``, which costs more than a quick request itself. The function here polls the
descriptor for a moment before it gives way to trio. With another version of pyfuse3, its own function stays in
place, which is slower and just as correct.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec

import pyfuse3
import trio

from tdefs.data.workers import workers

log = logging.getLogger(__name__)

P = ParamSpec("P")

SUPPORTED_PYFUSE3 = "3.5.0"

#: How many requests are worked on at a time: those that wait in the threads, and some that need none.
#: pyfuse3 counts its idle workers in the function that is replaced here, so it starts as many as it may and ends
#: none, and each keeps a buffer of 1 MiB.
WORKERS = 48

_SPIN_SECONDS = 0.0001
_POLL_MILLISECONDS = 20
# At the latest after so many requests without a pause the other tasks (timers, signals, the control socket) run.
_REQUESTS_BETWEEN_YIELDS = 64

# after so many turns of the other tasks, all requests that the kernel had sent have been served
_TURNS = 16

# What a request takes before any code of ours runs: the buffer of the task that reads it, and the data of a write.
_REQUEST_BYTES = 2 * (1 << 20) + (256 << 10)
_MEMORY_PAUSE_SECONDS = 0.01
_MEMORY_REMINDER_SECONDS = 60

#: How many tasks wait for the requests that the kernel has sent already.
_tasks_giving_way = 0


async def after_earlier_requests(done: Callable[[], bool]) -> None:
    """Wait until *done*, or until all requests have been served that the kernel has sent already."""
    global _tasks_giving_way
    _tasks_giving_way += 1  # nobody may wait for a request that has not come
    try:
        for _ in range(_TURNS):
            if done():
                return
            await trio.lowlevel.checkpoint()
    finally:
        _tasks_giving_way -= 1


class PollingWait:
    """Replacement for ``pyfuse3._wait_fuse_readable`` on one FUSE descriptor.

    One task at a time waits; the others are parked. The task that learns that the descriptor is readable reads it
    before anything else runs, so no two tasks ever see the same readiness, and none blocks in the read.
    """

    def __init__(self, fd: int, at_end: Callable[[], None] = lambda: None) -> None:
        """:param at_end: is called as soon as the end of the connection is seen."""
        self._fd = fd
        self._at_end = at_end
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._waiting = False
        self._parked = trio.lowlevel.ParkingLot()
        self._standby = False
        self._served = 0
        # other tasks run after each of the first requests: 'tdefs mount' learns at once that the mount serves
        self._first = 3
        self._reminded = 0.0

    async def __call__(self) -> bool:
        """Return True when the descriptor can be read; also at the end of the mount, when the read fails."""
        while self._waiting:
            await self._parked.park()
            self._standby = False
        self._waiting = True
        try:
            self._served += 1
            # Other tasks must run soon while work in a thread may end, or while a task gives way. This is asked
            # several times for each request, so it is written out.
            if workers.at_work or _tasks_giving_way or self._first or self._served >= _REQUESTS_BETWEEN_YIELDS:
                self._served = 0
                self._first = max(0, self._first - 1)
                await trio.lowlevel.checkpoint()
            while not _has_memory():
                await self._await_memory()
            # To wake a sleeping processor takes longer than a client needs for its next request.
            until = time.perf_counter() + _SPIN_SECONDS
            while not (workers.at_work or _tasks_giving_way) and time.perf_counter() < until:
                if events := self._poll.poll(0):
                    break
            else:
                while not (
                    events := self._poll.poll(0 if workers.at_work or _tasks_giving_way else _POLL_MILLISECONDS)
                ):
                    self._served = 0
                    await trio.lowlevel.wait_readable(self._fd)
            if events[0][1] & select.POLLERR:
                self._at_end()
        except trio.ClosedResourceError:
            return False
        finally:
            self._waiting = False
            # Runs as soon as this task pauses. If the request is answered without a pause, this task comes back
            # first, and the other one finds it waiting.
            if not self._standby and self._parked:
                self._standby = True
                self._parked.unpark()
        return True

    async def _await_memory(self) -> None:
        """Let requests that are under way end, so that their memory is free."""
        now = time.monotonic()
        if now >= self._reminded:
            self._reminded = now + _MEMORY_REMINDER_SECONDS
            log.error(
                "there is no memory for the next request, which waits (HINT: see ulimit -v, and free memory)"
            )
        await trio.sleep(_MEMORY_PAUSE_SECONDS)


def _has_memory() -> bool:
    """Return whether the next request can be received.

    Without memory, libfuse takes a request from the kernel and then fails, and pyfuse3 drops a write that it
    cannot copy. Neither request would ever be answered.
    """
    try:
        _new_bytes(None, _REQUEST_BYTES)
    except MemoryError:
        return False
    return True


# Unlike bytes(n) it clears nothing, and costs less than a microsecond.
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]


class Connection:
    """A mount's connection with the kernel, from the mount on."""

    def __init__(self, operations: pyfuse3.Operations, mountpoint: str, options: set[str]) -> None:
        """Mount.

        :raises RuntimeError: libfuse could not mount; it has written more to standard error.
        """
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        before = _fuse_descriptors()
        pyfuse3.init(operations, mountpoint, options)
        # pyfuse3 does not give the descriptor away
        (self._fd,) = _fuse_descriptors() - before

    async def serve(self, at_end: Callable[[], None]) -> None:
        """Serve requests until the kernel says that the connection has ended. No program waits for an answer then.

        :param at_end: is called once, as soon as the kernel says so.
        """
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                at_end()

        install_polling_wait(self._fd, end)
        try:
            await pyfuse3.main(max_tasks=WORKERS)
            end()
        finally:
            self.cut()

    def cut(self) -> None:
        """End the connection: all requests that wait for an answer fail, and all that come later.

        Call it before waiting for a thread that may itself wait for an answer of the mount. The kernel aborts the
        connection when its last descriptor is closed. The number stays open, since libfuse goes on to use it.
        """
        os.dup2(self._null, self._fd, inheritable=False)

    def close(self) -> None:
        """Free the memory of libfuse, once nothing is served any more; this does not unmount."""
        pyfuse3.close(unmount=False)
        os.close(self._null)


def install_polling_wait(fd: int, at_end: Callable[[], None]) -> bool:
    """Have the mounted session use :class:`PollingWait`; return whether this version of pyfuse3 allows it."""
    has_both = hasattr(pyfuse3, "_wait_fuse_readable") and hasattr(pyfuse3, "_session_loop")
    if pyfuse3.__version__ != SUPPORTED_PYFUSE3 or not has_both:
        log.warning("pyfuse3 %s is not %s: using its own, slower loop", pyfuse3.__version__, SUPPORTED_PYFUSE3)
        return False
    pyfuse3._wait_fuse_readable = PollingWait(fd, at_end)  # type: ignore[attr-defined]
    pyfuse3._session_loop = surviving(pyfuse3._session_loop)  # type: ignore[attr-defined]
    return True


def surviving(serve: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Have a task of pyfuse3 begin anew after a lack of memory, instead of ending the mount.

    A lack of memory in tdefs itself becomes ENOMEM; this one is in pyfuse3's own code around a request.
    """

    async def surviving_task(*args: P.args, **kwargs: P.kwargs) -> None:
        while True:
            try:
                return await serve(*args, **kwargs)
            except MemoryError:
                log.exception("a request was not answered: no memory")
                await trio.sleep(_MEMORY_PAUSE_SECONDS)

    return surviving_task


def _fuse_descriptors() -> set[int]:
    """Return the descriptors of /dev/fuse that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry) == "/dev/fuse":  # noqa: PTH115 - a link to a deleted file is no path
                found.add(int(entry.name))
    return found

"""Waiting for FUSE requests without the detour over trio's scheduler: all that depends on pyfuse3's inside.

pyfuse3 3.5 serves requests with a pool of tasks; before each read of the FUSE descriptor a task calls the module's
function ``_wait_fuse_readable``, which costs more than a quick request itself. The one here polls the descriptor
for a moment before it gives way to trio. Where pyfuse3 is another version, or looks otherwise, its own is left in
place: slower, and as right.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pyfuse3
import trio

log = logging.getLogger(__name__)

R = TypeVar("R")

SUPPORTED_PYFUSE3 = "3.5.0"

#: How many requests are worked on at a time: those that wait in trio's 40 threads, and some that need none.
#: pyfuse3 counts its idle workers in the function that is replaced here, so it starts as many as it may and ends
#: none, and each keeps a buffer of 1 MiB.
WORKERS = 48

_SPIN_SECONDS = 0.0001
_POLL_MILLISECONDS = 20
# At the latest after so many requests without a pause the other tasks (timers, signals, the control socket) run.
_REQUESTS_BETWEEN_YIELDS = 64

# after so many turns of the others, what the kernel had sent has been served
_TURNS = 16

_threads_at_work = 0


async def in_thread(work: Callable[[], R]) -> R:
    """Run *work*, which waits for a disk, in a thread; the polling loop gives way while any is at work."""
    global _threads_at_work
    _threads_at_work += 1
    try:
        return await trio.to_thread.run_sync(work)
    finally:
        _threads_at_work -= 1


async def after_earlier_requests(done: Callable[[], bool]) -> None:
    """Let the requests be served that the kernel has sent already, until *done*, or until there are none."""
    global _threads_at_work
    _threads_at_work += 1  # nobody may wait for a request that has not come
    try:
        for _ in range(_TURNS):
            if done():
                return
            await trio.lowlevel.checkpoint()
    finally:
        _threads_at_work -= 1


class PollingWait:
    """Replacement for ``pyfuse3._wait_fuse_readable`` on one FUSE descriptor.

    One task at a time waits; the others are parked. Whoever was told that the descriptor is readable reads it
    before anything else runs, so no two tasks ever see the same readiness, and none blocks in the read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._waiting = False
        self._parked = trio.lowlevel.ParkingLot()
        self._standby = False
        self._served = 0

    async def __call__(self) -> bool:
        """Return True when the descriptor can be read; also at the end of the mount, which the read then sees."""
        while self._waiting:
            await self._parked.park()
            self._standby = False
        self._waiting = True
        try:
            self._served += 1
            if _threads_at_work or self._served >= _REQUESTS_BETWEEN_YIELDS:
                self._served = 0
                await trio.lowlevel.checkpoint()
            # A processor that went to sleep takes longer to wake than a client to send its next request.
            until = time.perf_counter() + _SPIN_SECONDS
            while not _threads_at_work and time.perf_counter() < until:
                if self._poll.poll(0):
                    return True
            while not self._poll.poll(0 if _threads_at_work else _POLL_MILLISECONDS):
                self._served = 0
                await trio.lowlevel.wait_readable(self._fd)
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


def install_polling_wait() -> bool:
    """Have the mounted session use :class:`PollingWait`; return whether this pyfuse3 is one where it can."""
    if pyfuse3.__version__ != SUPPORTED_PYFUSE3 or not hasattr(pyfuse3, "_wait_fuse_readable"):
        log.warning("pyfuse3 %s is not %s: using its own, slower loop", pyfuse3.__version__, SUPPORTED_PYFUSE3)
        return False
    fd = _fuse_descriptor()
    if fd is None:
        log.warning("the FUSE descriptor was not found: using pyfuse3's own, slower loop")
        return False
    pyfuse3._wait_fuse_readable = PollingWait(fd)
    return True


def _fuse_descriptor() -> int | None:
    """Return the descriptor of /dev/fuse that libfuse opened; pyfuse3 does not tell it."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.readlink(entry) == "/dev/fuse":  # noqa: PTH115 - a link to a deleted file is no path
                found.append(int(entry.name))
    return found[0] if len(found) == 1 else None

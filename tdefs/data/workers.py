"""The threads that wait for a disk, beside the event loop: started early, and kept.

Other programs may use up a limit on processes (RLIMIT_NPROC, a container's pids limit) at any time. trio's own
threads end after a while without work. Then no new one could be started, and a program would get an error although
the disk is sound.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, cast

import trio

R = TypeVar("R")

#: How many may work at a time; those beyond FIRST_THREADS are started when there is work for them.
MOST_THREADS = 40
#: How many there are from the beginning.
FIRST_THREADS = 8

# Python code and OpenSSL need a tenth of it; the default of 8 MiB counts against a limit of address space.
_STACK_BYTES = 1 << 20
_PAUSE_SECONDS = 0.01
_END_SECONDS = 1.0


class NoThreadError(Exception):
    """There is no thread, and none could be started."""

    def __init__(self) -> None:
        super().__init__("no thread can be started: the limit on processes is reached (ulimit -u, or pids.max)")


class _Job(Generic[R]):
    """One piece of work, and the task that waits for it."""

    def __init__(self, work: Callable[[], R]) -> None:
        self._work = work
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._error: BaseException | None = None
        self._value: R | None = None

    def run(self) -> None:
        """Do the work in this thread, and wake the task that waits for it."""
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        while True:
            try:
                self._token.run_sync_soon(self._wake)
            except MemoryError:
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def _wake(self) -> None:
        trio.lowlevel.reschedule(self._task)

    def result(self) -> R:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self._error
        return cast(R, self._value)


class Workers:
    """Threads that do one job after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._threads = 0
        #: How many tasks wait for their work.
        self.at_work = 0

    def start(self) -> int:
        """Start the first threads; return how many there are."""
        while self._threads < FIRST_THREADS and self._start_one():
            pass
        return self._threads

    async def run(self, work: Callable[[], R]) -> R:
        """Do *work* in a thread; it cannot be cancelled.

        :raises NoThreadError: there is no thread, and none can be started.
        """
        if self.at_work >= self._threads and self._threads < MOST_THREADS:
            self._start_one()
        if self._threads == 0:
            raise NoThreadError
        job = _Job(work)
        self.at_work += 1
        try:
            self._jobs.put(job)
            await trio.lowlevel.wait_task_rescheduled(lambda _raise_cancel: trio.lowlevel.Abort.FAILED)
        finally:
            self.at_work -= 1
        return job.result()

    def stop(self) -> None:
        """End all threads, none of which may be at work, so that other processes can use their number."""
        for _ in range(self._threads):
            self._jobs.put(None)
        deadline = time.monotonic() + _END_SECONDS
        for _ in range(self._threads):
            try:
                self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
        self._threads = 0

    def _start_one(self) -> bool:
        """Start a thread; return whether that was possible."""
        before = threading.stack_size(_STACK_BYTES)
        try:
            # not threading.Thread, which would wait for ever for a thread that lacks the memory to begin
            _thread.start_new_thread(self._serve, ())
        except (RuntimeError, MemoryError):
            return False
        finally:
            threading.stack_size(before)
        self._threads += 1
        return True

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # it would live until the next one comes
        self._ended.put(None)


#: The threads of this process, which serves one mount.
workers = Workers()


async def in_thread(work: Callable[[], R]) -> R:
    """Run *work*, which waits for a disk, in a thread; if there is no thread, run it here.

    The loop that serves requests gives way to other tasks while a thread is at work.
    """
    try:
        return await workers.run(work)
    except NoThreadError:
        return work()

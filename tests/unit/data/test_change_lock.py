"""Who may read and change an open file at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tdefs.data.change_lock import ChangeLock

#: Long enough for a thread that is not kept waiting, on a busy machine as well.
SOON_SECONDS = 10.0
#: How long it is watched that a thread does not go on.
WATCHED_SECONDS = 0.1


class Attempt:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._done = threading.Event()
        self._call = call
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._call()
        self._done.set()

    def succeeds(self) -> bool:
        return self._done.wait(SOON_SECONDS)

    def waits(self) -> bool:
        return not self._done.wait(WATCHED_SECONDS)


def test_reads_and_writes_of_pages_run_at_the_same_time() -> None:
    lock = ChangeLock()
    lock.share()
    assert Attempt(lock.share).succeeds()
    assert Attempt(lock.begin_pages).succeeds()


def test_a_thread_that_holds_the_lock_alone_keeps_out_all_others() -> None:
    lock = ChangeLock()
    lock.acquire()
    others = [Attempt(call) for call in (lock.share, lock.begin_pages, lock.share)]
    assert all(other.waits() for other in others)
    lock.release()
    assert all(other.succeeds() for other in others)


def test_a_thread_holds_the_lock_alone_only_when_all_others_have_ended() -> None:
    lock = ChangeLock()
    lock.share()
    lock.begin_pages()
    alone = Attempt(lock.acquire)
    assert alone.waits()
    lock.end_sharing()
    assert alone.waits()
    lock.end_pages(0)
    assert alone.succeeds()
    second = Attempt(lock.acquire)
    assert second.waits()
    lock.release()
    assert second.succeeds()


def test_a_thread_that_waits_to_hold_the_lock_alone_is_not_overtaken() -> None:
    lock = ChangeLock()
    lock.share()
    alone = Attempt(lock.acquire)
    assert alone.waits()
    late = Attempt(lock.share)
    assert late.waits()
    lock.end_sharing()
    assert alone.succeeds()
    assert late.waits()
    lock.release()
    assert late.succeeds()


def test_threads_that_hold_the_lock_alone_in_turn_let_others_share_it() -> None:
    """Several writers that extend a file keep no read waiting: one of them always waits to be the next."""
    lock = ChangeLock()
    is_over = threading.Event()

    def alone() -> None:
        while not is_over.is_set():
            lock.acquire_for_change()
            time.sleep(0.0005)
            lock.release(1)

    writers = [threading.Thread(target=alone) for _ in range(3)]
    for writer in writers:
        writer.start()
    try:
        for share, end in ((lock.share, lock.end_sharing), (lock.begin_pages, lambda: lock.end_pages(0))):
            for _ in range(20):
                assert Attempt(share).succeeds()
                end()
    finally:
        is_over.set()
        for writer in writers:
            writer.join()


def test_a_thread_that_gives_up_waiting_to_share_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = ChangeLock()
    lock.acquire()
    released = lock._released
    wait = released.wait

    def interrupted() -> None:
        wait()
        monkeypatch.setattr(released, "wait", wait)
        raise KeyboardInterrupt

    def share() -> None:
        with pytest.raises(KeyboardInterrupt):
            lock.share()

    monkeypatch.setattr(released, "wait", interrupted)
    late = Attempt(share)
    assert late.waits()
    monkeypatch.setattr(released, "wait", wait)
    alone = Attempt(lock.acquire)
    assert alone.waits()
    lock.release()
    assert late.succeeds()
    assert alone.succeeds()


def test_a_read_learns_of_each_change_that_began_before_its_end() -> None:
    lock = ChangeLock()
    before = lock.share()
    lock.end_sharing()
    assert lock.changes == before
    lock.begin_pages()
    assert lock.changes != before
    assert lock.share() == -1, "pages are being written"
    lock.end_sharing()
    lock.end_pages(8192)
    before = lock.share()
    lock.end_sharing()
    assert lock.changes == before
    lock.acquire_for_change()
    lock.release()
    assert lock.changes != before


def test_a_read_that_holds_the_lock_alone_is_no_change() -> None:
    lock = ChangeLock()
    lock.acquire()
    lock.release()
    assert lock.changes == 0


def test_bytes_are_counted_once_by_whatever_thread_they_were_written() -> None:
    lock = ChangeLock()

    def write() -> None:
        for _ in range(500):
            lock.begin_pages()
            lock.end_pages(3)
            lock.acquire_for_change()
            lock.release(4)

    threads = [threading.Thread(target=write) for _ in range(4)]
    taken = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += lock.take_unsynced()
        time.sleep(0.001)
    taken += lock.take_unsynced()
    assert taken == 4 * 500 * 7
    assert lock.changes == 4 * 500 * 2

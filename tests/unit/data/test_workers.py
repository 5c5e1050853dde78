"""Work beside the event loop: in threads that stay, and on the loop where there are none."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import NoReturn

import pytest
import trio

from tdefs.data import workers as workers_module
from tdefs.data.workers import FIRST_THREADS, MOST_THREADS, NoThreadError, Workers, in_thread
from tdefs.fuse import loop


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """Those that :func:`in_thread` uses, none of them started."""
    own = Workers()
    monkeypatch.setattr(workers_module, "workers", own)
    yield own
    own.stop()


def refuse(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_without_a_thread_work_is_done_on_the_event_loop(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert workers.start() == 0
    assert trio.run(in_thread, threading.get_ident) == threading.get_ident()
    with pytest.raises(NoThreadError):
        trio.run(workers.run, threading.get_ident)


def test_threads_that_were_started_early_serve_when_no_more_can_be_had(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers.start() == FIRST_THREADS
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    seen: set[int] = set()

    def work() -> None:
        time.sleep(0.01)
        seen.add(threading.get_ident())

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * FIRST_THREADS):
                nursery.start_soon(in_thread, work)

    trio.run(scenario)
    assert threading.get_ident() not in seen
    assert 0 < len(seen) <= FIRST_THREADS


def test_as_many_threads_work_as_there_is_work_for(workers: Workers) -> None:
    together = threading.Barrier(MOST_THREADS, timeout=20)

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(MOST_THREADS):
                nursery.start_soon(in_thread, together.wait)

    trio.run(scenario)


def test_what_work_raises_reaches_who_waits_for_it(workers: Workers) -> None:
    for error in (MemoryError(), OSError(5, "broken"), ZeroDivisionError()):

        def work(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            trio.run(in_thread, work)
        assert caught.value is error


def test_work_under_way_is_not_left_by_who_is_cancelled(workers: Workers) -> None:
    done: list[bool] = []

    def work() -> None:
        time.sleep(0.2)
        done.append(True)

    async def scenario() -> None:
        with trio.move_on_after(0.01):
            await in_thread(work)
        assert done == [True]

    trio.run(scenario)


def test_a_task_that_serves_requests_begins_anew_after_a_lack_of_memory() -> None:
    began: list[int] = []

    async def serve(number: int) -> None:
        began.append(number)
        if len(began) < 3:
            raise MemoryError

    trio.run(partial(loop.surviving(serve), 7))
    assert began == [7, 7, 7]

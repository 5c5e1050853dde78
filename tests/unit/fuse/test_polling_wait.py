"""The polling loop: one reader at a time, nobody starves, and pyfuse3's own loop where it does not fit."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import pyfuse3
import pytest
import trio

from tdefs.data.workers import in_thread
from tdefs.fuse import loop
from tdefs.fuse.loop import PollingWait, install_polling_wait

R = TypeVar("R")


def test_another_version_of_pyfuse3_keeps_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pyfuse3._wait_fuse_readable  # type: ignore[attr-defined]
    monkeypatch.setattr(pyfuse3, "__version__", "3.6.0")
    assert not install_polling_wait(0, lambda: None)
    assert pyfuse3._wait_fuse_readable is own  # type: ignore[attr-defined]


def test_a_pyfuse3_that_looks_otherwise_keeps_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, "_wait_fuse_readable")
    assert not install_polling_wait(0, lambda: None)


def test_each_readiness_is_seen_by_one_task_alone() -> None:
    """The reads block, as those of a FUSE descriptor do: a task too many would hang here for ever."""

    async def scenario() -> list[bytes]:
        reading, writing = os.pipe()
        wait = PollingWait(reading)
        seen: list[bytes] = []

        async def worker(pause: float) -> None:
            while await wait():
                message = os.read(reading, 1)
                if not message:
                    return
                seen.append(message)
                if pause:
                    await trio.sleep(pause)

        async with trio.open_nursery() as nursery:
            for pause in (0, 0, 0.001, 0.002, 0.003):
                nursery.start_soon(worker, pause)
            for number in range(200):
                os.write(writing, bytes([number]))
                if number % 7 == 0:
                    await trio.sleep(0.002)
            os.close(writing)
        os.close(reading)
        return seen

    assert sorted(trio.run(partial(_within, 20, scenario))) == [bytes([number]) for number in range(200)]


def test_a_thread_and_a_timer_get_their_turn_while_requests_never_pause() -> None:
    async def scenario() -> float:
        reading, writing = os.pipe()
        os.write(writing, b"x")  # always readable: an endless stream of requests
        wait = PollingWait(reading)
        started = time.monotonic()

        async def worker() -> None:
            while await wait():
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)
            await in_thread(partial(time.sleep, 0.05))
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        os.close(reading)
        os.close(writing)
        return time.monotonic() - started

    assert trio.run(partial(_within, 20, scenario)) < 2


def test_a_request_is_not_taken_before_there_is_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """libfuse would take it from the kernel, and then find that it cannot keep it."""
    lacking = [True, True, True]
    monkeypatch.setattr(loop, "_has_memory", lambda: not lacking or lacking.pop() is None)

    async def scenario() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"x")
        assert await PollingWait(reading)()
        assert lacking == []
        os.close(reading)
        os.close(writing)

    trio.run(partial(_within, 20, scenario))


def test_the_end_of_the_connection_is_told_as_soon_as_it_is_seen() -> None:
    async def scenario() -> list[str]:
        reading, writing = os.pipe()
        os.close(reading)  # the other end, too, sees an error then
        told: list[str] = []
        assert await PollingWait(writing, lambda: told.append("end"))()
        os.close(writing)
        return told

    assert trio.run(partial(_within, 20, scenario)) == ["end"]


async def _within(seconds: float, scenario: Callable[[], Awaitable[R]]) -> R:
    with trio.fail_after(seconds):
        return await scenario()

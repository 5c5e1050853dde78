"""Work that several threads do in advance, while the results come in the order of the items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: At most so many results may be ready before their turn.
_AHEAD = 64
_TICK_SECONDS = 0.2
# how long an interrupted command waits for one read of the disk before it ends without it
_END_SECONDS = 2.0


class _Shared(Generic[Item, Result]):
    """What the threads share with the code that takes their results."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event) -> None:
        self._work = work
        self._items = items
        self._stop = stop
        self._changed = threading.Condition()
        self._results: dict[int, Result | BaseException] = {}
        self._begun = 0
        self._taken = 0

    def run(self) -> None:
        """Work until nothing is left, or a stop was asked for. This is what each thread runs."""
        while (number := self._next()) is not None:
            result: Result | BaseException
            try:
                result = self._work(self._items[number])
            except BaseException as error:  # raised again where the results are taken
                result = error
            with self._changed:
                self._results[number] = result
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            while not self._stop.is_set() and self._begun >= self._taken + _AHEAD:
                self._changed.wait()
            if self._stop.is_set() or self._begun == len(self._items):
                return None
            self._begun += 1
            return self._begun - 1

    def take(self, number: int) -> Result | BaseException | None:
        """Return the result of item *number*; ``None`` if it is not ready after a short wait."""
        with self._changed:
            if number not in self._results:
                self._changed.wait(_TICK_SECONDS)
            if number not in self._results:
                return None
            self._taken = number + 1
            self._changed.notify_all()
            return self._results.pop(number)

    def stop(self) -> None:
        """Make the threads end: waiting ones at once, working ones when the work sees the stop."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    *,
    tick: Callable[[], object],
    stop: threading.Event,
) -> Generator[Result, None, None]:
    """Yield what *work* returns for each of *items*, in their order, and raise what it raises.

    *work* never returns ``None``. If no thread can be started, the caller's own thread does all work.

    :param threads: the number of threads.
    :param tick: called several times a second while this waits for a result, and after each result.
    :param stop: is set when no more results are needed; *work* checks it to end early.
    """
    shared = _Shared(work, items, stop)
    running = _started(shared.run, min(threads, len(items)))
    try:
        for number, item in enumerate(items):
            if not running:
                yield work(item)
                tick()
                continue
            while (result := shared.take(number)) is None:
                tick()
            tick()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        shared.stop()
        for thread in running:
            thread.join(_END_SECONDS)


def _started(run: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start *count* threads, or as many as the limits allow."""
    running: list[threading.Thread] = []
    for _ in range(count):
        # a daemon thread, since a disk that does not answer must not block the end of an interrupted command
        thread = threading.Thread(target=run, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        running.append(thread)
    return running

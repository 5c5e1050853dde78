"""Work that several threads do ahead, and whose results come in the order of what it is done for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: So many results may lie ready ahead of the one that is due.
_AHEAD = 64
_TICK_SECONDS = 0.2
# what a disk may take for one read before an interrupted command ends without it
_END_SECONDS = 2.0


class _Shared(Generic[Item, Result]):
    """What the threads and the taker of their results share."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], stop: threading.Event) -> None:
        self._work = work
        self._items = items
        self._stop = stop
        self._changed = threading.Condition()
        self._results: dict[int, Result | BaseException] = {}
        self._begun = 0
        self._taken = 0

    def run(self) -> None:
        """Work until nothing is left, or wanted: the life of a thread."""
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
        """Return the result of item *number*; ``None`` if it is not there after a tick."""
        with self._changed:
            if number not in self._results:
                self._changed.wait(_TICK_SECONDS)
            if number not in self._results:
                return None
            self._taken = number + 1
            self._changed.notify_all()
            return self._results.pop(number)

    def stop(self) -> None:
        """Have the threads end: those that wait at once, those that work when the work sees it."""
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
    """Yield what *work* returns for each of *items*, in their order; raise what it raises.

    That is never ``None``. Where no thread can be had, the caller's own does all of it.

    :param threads: so many do the work.
    :param tick: called while a result is waited for, several times a second, and after each.
    :param stop: set once no more results are wanted; *work* looks at it to end early.
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
    """Start up to *count* threads, fewer where a limit does not allow more."""
    running: list[threading.Thread] = []
    for _ in range(count):
        # a daemon, since a disk that does not answer must not keep an interrupted command
        thread = threading.Thread(target=run, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break
        running.append(thread)
    return running

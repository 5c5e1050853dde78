"""How long operations of a disk took lately: a quick one runs on the event loop, a slow one in a thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")


class Pace:
    """How long one kind of operation takes, as measured."""

    def __init__(self, quick_seconds: float, smoothing: float) -> None:
        """:param quick_seconds: up to this an operation is waited for on the event loop.

        :param smoothing: how much of each measurement goes into the average, from 0 to 1.
        """
        self._quick_seconds = quick_seconds
        self._smoothing = smoothing
        self._typical_seconds = quick_seconds

    @property
    def is_quick(self) -> bool:
        """Return whether the next operation should be waited for on the event loop."""
        return self._typical_seconds <= self._quick_seconds

    def timed(self, work: Callable[[], R]) -> R:
        """Do *work* and measure it, unless it fails. If two threads do so at once, one measurement may be lost."""
        start = time.perf_counter()
        result = work()
        self._typical_seconds += self._smoothing * (time.perf_counter() - start - self._typical_seconds)
        return result

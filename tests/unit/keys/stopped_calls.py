"""System calls of which a test picks one that is not made any more: the process dies before it, or it fails."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

_OS_CALLS = (
    *("open", "read", "write", "pread", "pwrite", "ftruncate", "fsync", "posix_fadvise", "close"),
    *("fchmod", "fchown", "stat", "fstat", "replace", "rename", "link", "unlink"),
)
KILLED = 77


class StoppedCalls:
    """Stands in for system calls and does something before the n-th of them; ``names`` are those so far."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_at: int, stop: Callable[[], None]) -> None:
        self.names: list[str] = []
        self._stop_at = stop_at
        self._stop = stop
        for name in _OS_CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))
        patch.setattr(fcntl, "flock", self._counted("flock", fcntl.flock))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            if len(self.names) == self._stop_at + 1:
                self._stop()
            return call(*args, **kwargs)

        return counted


def calls_of(work: Callable[[], object]) -> list[str]:
    """Do the work, and return the calls that it makes."""
    with pytest.MonkeyPatch.context() as patch:
        counter = StoppedCalls(patch, -1, lambda: None)
        work()
        return list(counter.names)


def kill_before(number: int, work: Callable[[], object]) -> None:
    """Do the work in a process that dies before its call ``number``, without a chance to clean up."""
    child = os.fork()
    if child == 0:
        die = os._exit
        try:
            with pytest.MonkeyPatch.context() as patch:
                StoppedCalls(patch, number, lambda: die(KILLED))
                work()
        finally:
            die(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def table(calls: list[str], outcomes: list[str], repairs: list[str]) -> str:
    """Return for the record, in Markdown, what a kill before each call left, and what repair said of it."""
    rows = [
        f"| {number} | {name} | {outcome} | {repair or 'nothing was left'} |"
        for number, (name, outcome, repair) in enumerate(zip(calls, outcomes, repairs, strict=True))
    ]
    head = ["| point | killed before the call | what opens | what repair said |", "| ---: | --- | --- | --- |"]
    return "\n".join([*head, *rows, "", f"{len(rows)} points: {dict(Counter(outcomes))}"])

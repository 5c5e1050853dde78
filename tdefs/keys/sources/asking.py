"""Asking a service that may be slow or away: say what takes time, try again, and end.

A service says how it is asked once (:class:`Service`). Time limits and further attempts are around it, in one
place for all services (:class:`Patient`).
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import Generic, Self, TypeVar

import tenacity

from tdefs.keys.failures import UnreachableError
from tdefs.keys.sources.settings import SettingsReader

#: After this time a note says what the program is waiting for.
NOTICE_SECONDS = 2.0
_TIMEOUT_SECONDS = 10
_PATIENCE_SECONDS = 30
_MOST_PATIENCE_SECONDS = 3600
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0

Result = TypeVar("Result")
#: What one attempt gives to the function that asks, such as a client that has logged in.
Client = TypeVar("Client")


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long one attempt may wait for an answer, and for how long a silent service is asked again."""

    timeout_seconds: int
    patience_seconds: int

    @classmethod
    def read(cls, read: SettingsReader, most_timeout_seconds: int = 600) -> Self:
        """Return what the configuration says.

        :raises TdefsError: CONFIG_INVALID.
        """
        return cls(
            timeout_seconds=read.number("timeout_seconds", _TIMEOUT_SECONDS, 1, most_timeout_seconds),
            patience_seconds=read.number("patience_seconds", _PATIENCE_SECONDS, 0, _MOST_PATIENCE_SECONDS),
        )


class Service(ABC, Generic[Client]):
    """A service or a device, as one attempt to ask it sees it."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in messages, such as its address."""

    @abstractmethod
    def once(self, call: Callable[[Client], Result], purpose: str, until: float) -> Result:
        """Connect, return what ``call`` returns, and disconnect.

        :param purpose: what is asked, for messages.
        :param until: when patience ends, on the monotonic clock in seconds; infinite for a single attempt. A
            service that asks several servers in a row gives each of them what is left.
        :raises UnreachableError: another attempt may succeed.
        :raises TdefsError: another attempt would fail, too.
        """


class Patient(Generic[Client]):
    """Asks a service, again and again while it does not answer, for as long as the limits say."""

    def __init__(self, service: Service[Client], limits: TimeLimits, note: Callable[[str], None]) -> None:
        """``note`` shows what is waited for, and why an attempt failed."""
        self._service = service
        self._patience_seconds = limits.patience_seconds
        self._note = note

    def ask(self, call: Callable[[Client], Result], purpose: str = "") -> Result:
        """Return what ``call`` returns, given what the service gives it. See :meth:`Service.once`."""
        until = time.monotonic() + (self._patience_seconds or math.inf)
        return attempt(
            lambda: self._service.once(call, purpose, until),
            self._service.title,
            patience_seconds=self._patience_seconds,
            note=self._note,
        )


def attempt(
    ask: Callable[[], Result],
    what: str,
    *,
    note: Callable[[str], None],
    patience_seconds: float = _PATIENCE_SECONDS,
) -> Result:
    """Return what ``ask`` returns; while it raises UnreachableError, ask again for ``patience_seconds``.

    An attempt that is under way when patience ends is not broken off: ``ask`` must have a time-out of its own.
    Raises the last UnreachableError, and each other error of ``ask`` at once.

    :param what: the service that is asked.
    :param note: shows a line: what is waited for, and why an attempt failed.
    """

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = f"{error}: {error.detail}" if isinstance(error, UnreachableError) and error.detail else f"{error}"
        left = max(0.0, patience_seconds - (state.seconds_since_start or 0.0))
        note(f"{reason}; trying again for up to {left:.0f} s")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UnreachableError),
        wait=tenacity.wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS),
        stop=tenacity.stop_before_delay(patience_seconds),
        before_sleep=before_sleep,
        reraise=True,
    )
    with _noting_delay(f"waiting for {what}", note):
        return retrying(ask)


@contextmanager
def _noting_delay(text: str, note: Callable[[str], None]) -> Iterator[None]:
    """Show ``text`` if the ``with`` block takes long."""
    timer = Timer(NOTICE_SECONDS, note, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()

"""Asking a key server that may be slow or away: say why it takes time, try again, and end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

import tenacity

from tdefs.errors import Exit, TdefsError

#: After this time somebody who waits is told for what.
NOTICE_SECONDS = 2.0
#: For how long a server that does not answer is asked again, by default.
PATIENCE_SECONDS = 30
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0

Result = TypeVar("Result")


class UnreachableError(TdefsError):
    """Nobody answers; another attempt may succeed."""

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(
            Exit.KEY_SERVER_UNREACHABLE,
            message,
            detail=detail,
            hint="start it, or unlock with another protector; what is mounted goes on without it",
        )


def attempt(
    ask: Callable[[], Result],
    what: str,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    report: Callable[[str], None] | None = None,
) -> Result:
    """Return what ``ask`` returns, asking again while it raises UnreachableError, for ``patience_seconds``.

    An attempt that is under way then is not broken off: ``ask`` must have a time-out of its own. ``what`` names
    whom it asks. ``report`` is told in a line what is waited for, and why an attempt failed; by default this
    goes to stderr. Raises the last UnreachableError, and at once whatever else ``ask`` raises.
    """
    tell = report or _print_line

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = f"{error}: {error.detail}" if isinstance(error, UnreachableError) and error.detail else f"{error}"
        left = max(0.0, patience_seconds - (state.seconds_since_start or 0.0))
        tell(f"{reason}; trying again for up to {left:.0f} s")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UnreachableError),
        wait=tenacity.wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS),
        stop=tenacity.stop_before_delay(patience_seconds),
        before_sleep=before_sleep,
        reraise=True,
    )
    with _notice(f"waiting for {what}", tell):
        return retrying(ask)


@contextmanager
def _notice(text: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell ``text`` if the ``with`` block takes long."""
    timer = Timer(NOTICE_SECONDS, tell, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _print_line(text: str) -> None:
    print(f"tdefs: {text}", file=sys.stderr, flush=True)

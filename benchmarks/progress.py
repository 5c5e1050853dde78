"""What a run says while it works."""

from __future__ import annotations

import sys
import time

_BEGAN = time.monotonic()


def elapsed() -> float:
    """Return the seconds since the run began."""
    return time.monotonic() - _BEGAN


def say(text: str) -> None:
    """Say something on the terminal, with the time."""
    print(f"[{elapsed():5.0f} s] {text}", file=sys.stderr, flush=True)

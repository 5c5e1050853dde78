"""The errno that a program would get."""

from __future__ import annotations

from collections.abc import Callable


def errno_of(action: Callable[[], object]) -> int | None:
    """Return the errno of the OSError that an action raises, and None if it raises none."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None

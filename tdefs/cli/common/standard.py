"""Opening standard input, output and error, if the caller has closed them."""

from __future__ import annotations

import os
import sys

_FIRST_OTHER = 3


def open_standard_descriptors() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed, on /dev/null.

    Call this before anything else opens a file. Otherwise the next opened file gets such a number. A lock on
    descriptor 0 would be lost when a daemon gives itself an empty standard input, and output would go into the
    file that has descriptor 1. Python leaves ``sys.stdin`` and the others ``None``.
    """
    for number in range(_FIRST_OTHER):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    # they stay open as long as the process, as Python's own do
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _open_null(number: int) -> None:
    """Open /dev/null as *number*, for this process and for the programs that it starts."""
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)

"""Starting programs as nohup, shells in the background and odd supervisors do: deaf to signals."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_DEAF = """
import os, signal, sys
numbers = [signal.Signals[name] for name in sys.argv[1].split()]
if sys.argv[2] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
else:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def deaf(names: str, command: Sequence[str], *, how: str = "ignored") -> list[str]:
    """The command, started with signals ``ignored`` or ``blocked``.

    :param names: of the signals, such as ``SIGINT SIGHUP``
    """
    return [sys.executable, "-S", "-c", _DEAF, names, how, *command]


def signals_of(status: str, line: str) -> set[int]:
    """The numbers in one of the masks of /proc/PID/status, such as ``SigIgn``."""
    (mask,) = (words[1] for words in map(str.split, status.splitlines()) if words[:1] == [f"{line}:"])
    return {number + 1 for number in range(64) if int(mask, 16) >> number & 1}

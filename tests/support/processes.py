"""Finding and ending the processes that a test run has started, by the directory they work on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: How long to wait before a condition is looked at again: first, and at most.
FIRST_POLL_SECONDS = 0.002
POLL_SECONDS = 0.05


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until the condition holds, and return whether it did in time."""
    deadline = time.monotonic() + seconds
    pause = FIRST_POLL_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)
    return True


def arguments(pid: int) -> list[str]:
    """The arguments of a process; none if it is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _working_directory(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def processes_in(directory: Path) -> list[int]:
    """The processes that name the directory in their arguments, or work in it.

    Reads only /proc: a path on a mount whose daemon is gone must not be touched.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or (pid := int(entry.name)) in (os.getpid(), os.getppid()):
            continue
        if _working_directory(pid).startswith(str(directory)) or any(
            str(directory) in argument for argument in arguments(pid)
        ):
            found.append(pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_stopped(pid: int) -> bool:
    """Whether every thread of the process is stopped, which takes a moment after SIGSTOP."""
    try:
        states = [(thread / "stat").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False  # a thread has just ended
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone already is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_postgres(pid: int) -> bool:
    """Whether it is a PostgreSQL server or a child of one, which calls itself ``postgres: ...``."""
    return any(word.split(":")[0].endswith("postgres") for word in arguments(pid)[:1])


def end(pids: list[int], seconds: float = 10) -> None:
    """End processes, gently at first; return when they are gone."""
    for pid in pids:
        # To PostgreSQL SIGQUIT is the immediate shutdown, which removes its shared memory.
        send(pid, signal.SIGQUIT if is_postgres(pid) else signal.SIGTERM)
    if not wait_until(lambda: not any(map(is_alive, pids)), seconds):
        for pid in pids:
            send(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, pids)), seconds)

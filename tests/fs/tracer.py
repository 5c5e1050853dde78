"""Another process of the same user, which attaches itself to a program, as a debugger does."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# sys/ptrace.h
_SEIZE, _CONT, _DETACH, _LISTEN = 0x4206, 7, 17, 0x4208
_EVENT_STOP = 128
_WALL = 0x40000000
_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Course:
    """How a traced program ended, and whether it could be attached to."""

    attached: bool
    code: int


def trace(
    words: Sequence[str | Path],
    *,
    when: Callable[[], object] | None = None,
    as_user: Callable[[], None] = lambda: None,
) -> Course:
    """Run a program and attach to it, from its first instruction on or later; return when it has ended.

    :param when: returns at the time for attaching; without it that is before the first instruction
    :param as_user: what makes the calling process that of the attacker, in a fork; the program is of the same user
    """
    reading, writing = os.pipe()
    attacker = os.fork()
    if attacker == 0:
        answer = b"failed"
        try:
            as_user()
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # which a change of the user takes away until exec
            answer = b"%d %d" % _attack([str(word) for word in words], when)
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(attacker, 0)
    attached, code = map(int, said.split())
    return Course(bool(attached), code)


def _attack(words: list[str], when: Callable[[], object] | None) -> tuple[int, int]:
    waiting, go = os.pipe()
    victim = os.fork()
    if victim == 0:
        os.close(go)
        os.read(waiting, 1)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.execve(words[0], words, os.environ)  # noqa: S606
    os.close(waiting)
    if when is not None:
        os.close(go)
        when()
    attached = _ptrace(_SEIZE, victim)
    if when is None:
        os.close(go)
    return int(attached), _continue_until_end(victim)


def _continue_until_end(victim: int) -> int:
    """Lets whatever is traced go on each time that it stops; returns how the victim ended."""
    while True:
        pid, status = os.waitpid(-1, _WALL)
        if os.WIFSTOPPED(status):
            event = status >> 16
            number = os.WSTOPSIG(status)
            if event == _EVENT_STOP and number != signal.SIGTRAP:
                _ptrace(_LISTEN, pid)
            else:
                _ptrace(_CONT, pid, 0 if event else number)
        elif pid == victim:
            return os.waitstatus_to_exitcode(status)


def _ptrace(request: int, pid: int, data: int = 0) -> bool:
    if _libc.ptrace(request, pid, None, data) == 0:
        return True
    if ctypes.get_errno() not in (errno.EPERM, errno.ESRCH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return False


def seize(pid: int) -> None:
    """Attaches to a process; raises PermissionError if that is denied."""
    if not _ptrace(_SEIZE, pid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

"""A person at a terminal: a program in the foreground of a pseudo-terminal, what it shows, and what is typed."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType

#: Seconds after which a program that does not show what is expected hangs, also on a machine with much else to do.
LIMIT = 180

# A shell with job control, reduced to one job. It prints a line when the job stops, and one when it ends, with
# whether the terminal echoes then. A job that stopped in the background gets the foreground.
_SHELL = """
import array, fcntl, os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
background = sys.argv[1] == "background"
started, start = os.pipe()
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.close(start)
    os.read(started, 1)
    os.close(started)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])
os.setpgid(job, job)
if not background:
    os.tcsetpgrp(0, job)
print(f"<job {job}>", flush=True)
os.close(start)
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    print("<stopped>", flush=True)
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
os.tcsetpgrp(0, os.getpgrp())
echo = bool(termios.tcgetattr(0)[3] & termios.ECHO)
unread = array.array("i", [0])
fcntl.ioctl(0, termios.FIONREAD, unread)
code = os.waitstatus_to_exitcode(status)
print(f"<ended {code} {'with' if echo else 'without'} echo, {unread[0]} unread>", flush=True)
"""


class Terminal:
    """``command`` runs on a terminal; to be closed, at best by ``with``."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        mode: str = "foreground",
    ) -> None:
        words = [sys.executable, "-c", _SHELL, mode, *(os.fspath(word) for word in command)]
        environment = {**os.environ, **(env or {})}
        #: All that appeared on the terminal.
        self.shown = ""
        #: Once it has ended: how many bytes of whole lines were typed that nobody has read.
        self.unread = 0
        self._passed = 0
        self._ended = False
        self._child, self._terminal = pty.fork()
        if self._child == 0:
            os.execve(words[0], words, environment)  # noqa: S606
        self.job = int(self.expect(r"<job (\d+)>")[1])

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until something that fits the regular expression is shown, after all that was waited for."""
        deadline = time.monotonic() + LIMIT
        while (found := re.compile(pattern).search(self.shown, self._passed)) is None:
            ready, _, _ = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))
            data = b""
            if ready:
                with suppress(OSError):  # EIO when nobody has the other side open any more
                    data = os.read(self._terminal, 4096)
            assert data, f"the terminal never showed {pattern!r}, but only {self.shown!r}"
            self.shown += data.decode(errors="replace")
        self._passed = found.end()
        return found

    def press(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def end(self) -> tuple[int, bool]:
        """The exit code of the command, or minus its signal, and whether the terminal echoes again."""
        found = self.expect(r"<ended (-?\d+) (with|without) echo, (\d+) unread>")
        self.unread = int(found[3])
        self._ended = True
        return int(found[1]), found[2] == "with"

    def close(self) -> None:
        """End what still runs."""
        with suppress(ProcessLookupError):
            if not self._ended:
                os.killpg(self.job, signal.SIGKILL)
        os.kill(self._child, signal.SIGKILL)
        os.close(self._terminal)
        os.waitpid(self._child, 0)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""One program that exercises a file system in a directory, and what came out of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HUNG = "hung"
# Detaches every FUSE mount but the one that is tested, in a mount namespace of its own: some stressors visit each
# mount of the machine, and would wait for a daemon that somebody has stopped.
_ALONE = r"""
keep=$1; shift
awk '/ - fuse/ { print $5 }' /proc/self/mountinfo | while read -r point; do
    [ "$point" = "$keep" ] || umount -l "$(printf '%b' "$point")"
done
exec "$@"
"""


@dataclass(frozen=True)
class Outcome:
    """How an exercise ended, without what differs from run to run."""

    word: str
    notes: frozenset[str] = frozenset()
    seconds: float = 0.0

    def same_as(self, other: Outcome) -> bool:
        return (self.word, self.notes) == (other.word, other.notes)

    def text(self) -> str:
        return "; ".join([self.word, *sorted(self.notes)])


@dataclass(frozen=True)
class Exercise:
    """A program, the arguments that say where it works, and how its outcome is read."""

    suite: str
    name: str
    #: The commands, one after the other while they succeed, for a directory.
    commands: Callable[[Path], Sequence[Sequence[str]]]
    #: Outcome in a word, and notes, from the last exit code, everything that was said, and the directory.
    judge: Callable[[int, str, Path], tuple[str, frozenset[str]]]
    #: Seconds after which it hangs.
    limit: float = 120.0
    #: Whether what it has written stays, for ``tdefs verify`` to read.
    stays: bool = False

    def run(self, directory: Path, mountpoint: Path | None) -> tuple[Outcome, str]:
        """Run it in an empty directory; return the outcome and what was said.

        :param mountpoint: of the mount that the directory is on
        """
        said = ""
        began = time.monotonic()
        code = 0
        for command in self.commands(directory):
            code, text = self._execute(list(command), directory, mountpoint)
            said += f"$ {shlex.join(command)}\n{text}exit code {code}\n"
            if code != 0:
                break
        seconds = time.monotonic() - began
        if code in _TIMED_OUT:
            return Outcome(HUNG, frozenset(), seconds), said
        word, notes = self.judge(code, said, directory)
        return Outcome(word, notes, seconds), said

    def _execute(self, command: list[str], directory: Path, mountpoint: Path | None) -> tuple[int, str]:
        alone = ["unshare", "--mount", "--propagation=private", "sh", "-c", _ALONE, "sh", str(mountpoint or "")]
        if os.geteuid() != 0:
            alone = []  # a user cannot enter the mounts of others
        done = subprocess.run(
            ["timeout", "--kill-after=10", str(self.limit), *alone, *command],
            cwd=directory,
            env={**os.environ, "TMPDIR": str(directory), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        return done.returncode, done.stdout


# of timeout(1): ended by SIGTERM, and by SIGKILL
_TIMED_OUT = (124, 137)


def without_figures(line: str, directory: Path) -> str:
    """A line of output as it would be in any directory at any time."""
    line = line.replace(str(directory), "DIR")
    return re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "N", line).strip()

"""The kernel's list of mounts, which can be read without asking a daemon that may be dead."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")
#: The source of a mount that tests have made there.
_OURS = "tdefs-test"
#: For a shell in a mount namespace of its own: lets go of every tdefs mount but those below $1. Other tests want
#: to unmount these, which a copy would keep from working. Nothing is passed on to another namespace.
LET_GO_OF_OTHERS = r"""
keep=$1
# only in what they are mounted in: quickly, since a copy is in others' way until it is gone
awk '{ point[$1] = $5 } / - fuse.tdefs / { above[$2] } END { for (number in above) print point[number] }' \
    /proc/self/mountinfo | while read -r point; do
    case $point in "$keep" | "$keep"/* | "") ;; *) mount --make-private "$(printf '%b' "$point")" ;; esac
done 2>/dev/null
awk '/ - fuse.tdefs / { print $5 }' /proc/self/mountinfo | while read -r point; do
    case $point in "$keep" | "$keep"/*) ;; *) umount -l "$(printf '%b' "$point")" ;; esac
done
"""


def mounts_below(directory: Path) -> list[Path]:
    """The mount points at or below the directory, the innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): space, tab, newline and backslash are written as \ooo
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        if point == directory or directory in point.parents:
            points.append(point)
    return points[::-1]


def is_mounted(directory: Path) -> bool:
    """Whether something is mounted at the directory, served or not."""
    return directory in mounts_below(directory)


def detach(directory: Path) -> None:
    """Unmount lazily: works for a mount that is busy, or whose daemon is dead."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
    subprocess.run([*command, str(directory)], capture_output=True, check=False)


@contextmanager
def fusectl() -> Iterator[None]:
    """The file system that has a directory for each FUSE connection is mounted, as on every machine with systemd.

    What was not mounted before is not mounted afterwards, once no test of another process needs it.
    """
    with Path(__file__).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not is_mounted(CONNECTIONS):
            subprocess.run(["mount", "-t", "fusectl", _OURS, CONNECTIONS], check=True)
        try:
            yield
        finally:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                while f"{_OURS} {CONNECTIONS} " in Path("/proc/self/mounts").read_text():
                    subprocess.run(["umount", CONNECTIONS], check=True)

"""Check whether another user could change a file that this process trusts, or exchange it.

A configuration, a policy, a file with a secret, and what a key command runs decide what a process of root does. So
a user who could change one of them could act as root.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.mounts.table import strangers_mount
from tdefs.users import user_name

_MAX_LINKS = 40
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
#: A descriptor that the process was given when it was started.
_DESCRIPTOR = re.compile(r"/proc/(?:self|thread-self|[0-9]+)(?:/task/[0-9]+)?/fd/[0-9]+")


def check_trusted(path: Path, what: str) -> None:
    """Refuse ``what``, such as "policy file", if others than root, or this process's user, could change it.

    Each directory on the way is checked, and each symbolic link: a user who can write to a directory can exchange
    what is in it. In a sticky directory (/tmp) only the owner of an entry can do that. A process of root trusts
    only root. A file that does not exist, or cannot be checked, is not refused here: opening it fails. A
    descriptor that the process was given, and a device, are trusted, since the caller named them.

    :raises TdefsError: CONFIG_EXPOSED; it names the first thing that others could change, and how to close it.
    """
    Walk(path, what).check()


class Walk:
    """The way to one file, component by component, as the kernel follows it."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._users = {0, os.geteuid()}

    def check(self) -> None:
        """See :func:`check_trusted`."""
        rest = list(reversed(self._path.absolute().parts[1:]))
        links = 0
        place, status = Path("/"), Path("/").stat()
        while rest:
            name = rest.pop()
            if name == "..":
                # it was checked on the way down, or when a link led there
                place = place.parent
                status = place.stat()
                continue
            shared = self._check_directory(place, status)
            place = place / name
            if _DESCRIPTOR.fullmatch(os.fspath(place)):
                return
            above = status
            # before its file system is asked, which may never answer
            self._check_mount(place, strangers_mount(self._users, place=place))
            try:
                status = place.lstat()
            except (OSError, ValueError):
                return
            if status.st_dev != above.st_dev:
                device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
                self._check_mount(place, strangers_mount(self._users, device=device))
            if shared or not stat.S_ISLNK(status.st_mode):
                self._check_owner(place, status)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return
                with suppress(OSError):
                    target = place.readlink()
                    rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                    place = Path("/") if target.is_absolute() else place.parent
                    status = place.stat()
        self._check_file(place, status)

    def _check_directory(self, place: Path, status: os.stat_result) -> bool:
        """Check that no other user can exchange entries of a directory. Return whether it is sticky."""
        self._check_owner(place, status)
        shared = bool(status.st_mode & _WRITABLE)
        if shared and not status.st_mode & stat.S_ISVTX:
            raise self._exposed(place, _mode(status), f"chmod go-w {_quoted(place)}")
        return shared

    def _check_file(self, place: Path, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            self._check_owner(place, status)
            if status.st_mode & _WRITABLE:
                raise self._exposed(place, _mode(status), f"chmod go-w {_quoted(place)}")
        elif stat.S_ISDIR(status.st_mode) and status.st_mode & _WRITABLE:
            raise self._exposed(place, _mode(status), f"chmod go-w {_quoted(place)}")

    def _check_mount(self, place: Path, stranger: int | None) -> None:
        if stranger is not None:
            detail = f"{user_name(stranger)} has mounted what is there, and says what it is and whose"
            raise self._exposed(place, detail, f"umount {_quoted(place)}, or put the file elsewhere")

    def _check_owner(self, place: Path, status: os.stat_result) -> None:
        if status.st_uid in self._users or stat.S_ISCHR(status.st_mode):
            return
        user = user_name(os.geteuid())
        raise self._exposed(
            place,
            f"it belongs to {user_name(status.st_uid)}, and tdefs runs as {user}",
            f"chown {'-h ' if stat.S_ISLNK(status.st_mode) else ''}{user} {_quoted(place)},"
            f" if nobody else is to change what is there; else put it in a directory of {user}'s alone",
        )

    def _exposed(self, place: Path, detail: str, hint: str) -> TdefsError:
        return TdefsError(
            Exit.CONFIG_EXPOSED,
            f'others could change the {self._what} "{self._path}", so it is not used',
            detail=f'"{place}": {detail}' if place != self._path else detail,
            hint=hint,
        )


def _mode(status: os.stat_result) -> str:
    return f"its mode is {stat.S_IMODE(status.st_mode):04o}, so its group, or everybody, may write to it"


def _quoted(place: Path) -> str:
    return shlex.quote(os.fspath(place))

"""The way to a directory: each component is opened in turn, and users who could exchange it are reported.

A path that root follows is safe only if nobody but root can lead it elsewhere: no directory on the path belongs to
another user, and others can write to none. The same must be true for the directories of each symbolic link. In a
sticky directory such as /tmp only the owner can rename an entry. Access control lists need no check of their own:
the group's bits of the mode are their mask, so without write permission there the list lets nobody write. A file
system that another user has mounted (FUSE) can show any owners and modes.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ELOOP, ENOTDIR
from pathlib import Path

from tdefs.mounts.table import strangers_mount

#: As many as the kernel follows (MAXSYMLINKS).
_MOST_LINKS = 40
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Exchangeable:
    """A component of a path that other users than root and this process's user could exchange."""

    place: Path
    user: int | None
    """The user who could; ``None``: a group, or everybody."""
    reason: str
    remedy: str
    """A shell command that closes it."""


@dataclass(slots=True)
class Way:
    """A directory that was reached: its ``path`` without links, and ``fd``, opened with O_PATH."""

    path: Path
    fd: int
    exchangeable: list[Exchangeable] = field(default_factory=list)


@contextmanager
def follow(path: Path, *, last_link: bool = True) -> Iterator[Way]:
    """Follow *path* to a directory, which is open during the ``with`` block.

    If a file system is mounted at the last component, it is asked nothing, so a file system that is not served yet
    blocks nobody.

    :param last_link: whether the last component may be a symbolic link.
    :raises OSError: as open(2), naming the component; ELOOP for a last component that is a link and may not be
        one.
    """
    way = Way(Path("/"), os.open("/", _FLAGS | os.O_DIRECTORY))
    try:
        rest = list(path.absolute().parts[:0:-1])
        links = 0
        is_mount = True
        while rest:
            name = rest.pop()
            place = way.path.parent if name == ".." else way.path / name
            with named(place):
                inner = os.open(name, _FLAGS, dir_fd=way.fd)
            try:
                if name != "..":
                    way.exchangeable += _exchangeable(way, inner, place)
                target = _link_target(inner)
                if target is None:
                    is_mount = not rest and mount_number(inner) != mount_number(way.fd)
                    way.fd, inner = inner, way.fd
                    way.path = place
                    continue
            finally:
                os.close(inner)
            links += 1
            if links > _MOST_LINKS or not (rest or last_link):
                raise OSError(ELOOP, os.strerror(ELOOP), str(place))
            rest += [part for part in target.parts[::-1] if part != "/"]
            is_mount = False
            if target.is_absolute():
                top = os.open("/", _FLAGS | os.O_DIRECTORY)
                os.close(way.fd)
                way.fd, way.path = top, Path("/")
        if not is_mount and not stat.S_ISDIR(os.fstat(way.fd).st_mode):
            raise OSError(ENOTDIR, os.strerror(ENOTDIR), str(way.path))
        yield way
    finally:
        os.close(way.fd)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Make an OSError in the ``with`` block name *path*. Calls relative to a directory name only the last part."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def mount_number(fd: int) -> int:
    """Return the number of the mount of *fd*, as in /proc/self/mountinfo, without asking its file system."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return int(value)
    raise OSError(f"/proc/self/fdinfo/{fd} names no mount")


def _link_target(fd: int) -> Path | None:
    """Return where the symbolic link *fd* points; ``None`` if it is no link."""
    try:
        return Path(os.readlink("", dir_fd=fd))
    except OSError:
        return None


def _exchangeable(way: Way, inner: int, place: Path) -> Iterator[Exchangeable]:
    """Yield the users who could exchange *inner*, the entry at *place* in the directory that *way* has reached."""
    above = way.path
    quoted = shlex.quote(os.fspath(above))
    trusted = (0, os.geteuid())
    mount = mount_number(inner)
    stranger = strangers_mount(trusted, number=mount) if mount != mount_number(way.fd) else None
    if stranger is not None:
        what = f'user {stranger} has mounted what is at "{place}", and says what lies there'
        yield Exchangeable(place, stranger, what, f"umount {shlex.quote(os.fspath(place))}")
    status = os.fstat(way.fd)
    if status.st_uid not in trusted:
        reason = f'"{above}" belongs to user {status.st_uid}'
        yield Exchangeable(place, status.st_uid, reason, f"chown root {quoted}")
    if not status.st_mode & _OTHERS_WRITE:
        return
    if not status.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(status.st_mode)
        reason = f'group or others may write to "{above}" (mode {mode:04o})'
        yield Exchangeable(place, None, reason, f"chmod go-w {quoted}")
    elif mount == mount_number(way.fd):  # else nobody can rename it
        owner = os.fstat(inner).st_uid
        if owner not in trusted:
            yield Exchangeable(
                place, owner, f'"{place}" belongs to user {owner}, and lies where everybody may write', ""
            )

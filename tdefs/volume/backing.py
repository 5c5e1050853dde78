"""The owners of a volume's directories: the backing directory, the tree that the mount shows, and tdefs's own.

    BACKING/            owned by the daemon's user, mode 0700
      data/             the tree that the mount shows; its owner is set through the mount
      .tdefs/           owned by the daemon's user, mode 0700

A user who may write to BACKING can put other directories in the place of both. A user who may write to ``.tdefs``
can put other files in the place of the keystore, the log and the session. So tdefs refuses a volume if others may
write to these directories, or to a directory above the volume, since they could exchange it as a whole.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tdefs.errors import Exit, TdefsError
from tdefs.users import user_name
from tdefs.way import Exchangeable, follow

if TYPE_CHECKING:
    from tdefs.volume.description import Volume

_MODE = 0o700
_MOVE = "move the volume to a directory that is root's"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_data(volume: Volume) -> int:
    """Open the tree that the mount shows; a symbolic link is not followed.

    :raises TdefsError: FILE_UNTRUSTED if the backing directory belongs to another user, or others may write to it.
    :raises OSError: there is no such directory.
    """
    with _opened(volume.backing) as backing:
        refuse_others(volume.backing, os.fstat(backing))
        return os.open(volume.data.name, os.O_RDONLY | _FLAGS, dir_fd=backing)


def claim(volume: Volume, *, read_only: bool) -> list[str]:
    """Before a mount: check that BACKING and ``.tdefs`` are this user's, and take rights from others.

    Rights to read and to search are taken away without an error: with them others see ciphertext, names and sizes,
    but change nothing.

    :param read_only: whether the rights must stay as they are.
    :returns: warnings: which modes were too wide.
    :raises TdefsError: FILE_UNTRUSTED where a directory belongs to another user, or others may write to it or
        exchange it.
    """
    warnings = []
    with (
        follow(volume.backing, last_link=False) as way,
        _opened(Path("."), way.fd) as backing,
        _opened(volume.private, backing) as private,
    ):
        for one in way.exchangeable:
            raise TdefsError(
                Exit.FILE_UNTRUSTED,
                _who_exchanges(one),
                detail="a user who can exchange it can put another volume in the place of this one",
                hint=one.remedy or _MOVE,
            )
        for place, fd in ((volume.backing, backing), (volume.private, private)):
            status = os.fstat(fd)
            refuse_others(place, status)
            mode = stat.S_IMODE(status.st_mode)
            if mode == _MODE:
                continue
            done = "left so, since nothing may be changed"
            if not read_only:
                os.fchmod(fd, _MODE)
                done = f"set to {_MODE:04o}"
            warnings.append(f'the mode of "{place}" was {mode:04o}: {done}')
    return warnings


def weaknesses(volume: Volume, owner: int | None) -> Iterator[tuple[str, str]]:
    """Yield the faults in the owners and modes of a volume's directories, each with its remedy.

    :param owner: the user who should own them; ``None``: the owner of ``.tdefs``.
    """
    if owner is None:
        with suppress(OSError):
            owner = volume.private.lstat().st_uid
    for place in (volume.backing, volume.private):
        try:
            status = place.lstat()
        except OSError:
            continue  # the caller has read the volume's description there, and can say more
        found = _what_is_wrong(place, status, owner)
        if found is not None:
            yield found
    with suppress(OSError), follow(volume.backing) as way:
        for one in way.exchangeable:
            if one.user is None or one.user != owner:
                yield _who_exchanges(one), one.remedy or _MOVE


def refuse_others(place: Path, status: os.stat_result) -> None:
    """Check that a directory with *status* is this user's, and that nobody else may write to it.

    :raises TdefsError: FILE_UNTRUSTED.
    """
    found = _what_is_wrong(place, status, os.geteuid())
    if found is not None:
        raise TdefsError(
            Exit.FILE_UNTRUSTED,
            found[0],
            detail="a user who can write there can replace the volume's files by others",
            hint=f"see that nothing was planted there, then: {found[1]}",
        )


def _who_exchanges(one: Exchangeable) -> str:
    return f'others could exchange "{one.place}", on the way to the backing directory: {one.reason}'


def _what_is_wrong(place: Path, status: os.stat_result, owner: int | None) -> tuple[str, str] | None:
    """Return the fault of a directory, with the command that mends it; ``None`` if it has no fault."""
    quoted = shlex.quote(os.fspath(place))
    if not stat.S_ISDIR(status.st_mode):
        return f'"{place}" is not a directory', f"rm {quoted}"
    if owner is not None and status.st_uid != owner:
        return (
            f'"{place}" belongs to the user {user_name(status.st_uid)}, not to the daemon\'s, {user_name(owner)}',
            f"chown {user_name(owner)} {quoted} && chmod {_MODE:04o} {quoted}",
        )
    if status.st_mode & _OTHERS_WRITE:
        return (
            f'others than its owner can write to "{place}" (mode {stat.S_IMODE(status.st_mode):04o})',
            f"chmod {_MODE:04o} {quoted}",
        )
    return None


@contextmanager
def _opened(place: Path, above: int | None = None) -> Iterator[int]:
    """Open a directory during a ``with`` block; with *above*, by its name in that directory."""
    fd = os.open(place if above is None else place.name or ".", os.O_RDONLY | _FLAGS, dir_fd=above)
    try:
        yield fd
    finally:
        os.close(fd)

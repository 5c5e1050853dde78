"""A volume that is only read: on a read-only file system (a snapshot), or because of the option ``-o ro``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from errno import EROFS
from pathlib import Path
from typing import Any, NoReturn

from tdefs.data.calls import SystemCalls

_RUNTIME = Path("/run/tdefs")
# pam_systemd(8) makes a directory there for each user who has logged in.
_LOGINS = Path("/run/user")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_read_only(directory: Path) -> bool:
    """Return whether *directory* lies on a file system, or in a mount, that cannot be written to."""
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def control_places(backing: Path) -> list[Path]:
    """Return where the control socket of a volume that is only read may be: the first is this user's.

    Root's is in /run, a user's in the directory that the login made for this user, if there is one.
    """
    name = f"{hashlib.sha256(os.fsencode(backing)).hexdigest()[:32]}.control"
    root = _RUNTIME / name
    if os.geteuid() == 0:
        return [root]
    # not what XDG_RUNTIME_DIR says: a program that sets the variable would choose where a daemon makes files
    own = _LOGINS / str(os.geteuid())
    return [own / "tdefs" / name, root] if own.is_dir() and own.stat().st_uid == os.geteuid() else [root]


def _refuse(*_: Any) -> NoReturn:
    raise OSError(EROFS, os.strerror(EROFS))


def _nothing_to_sync(*_: Any) -> None:
    """Return at once: nothing was written."""


class ReadOnlyCalls(SystemCalls):
    """System calls that change nothing, whatever the kernel asks for: root may remount a mount "rw"."""

    def open(self, label: str, name: bytes, flags: int, mode: int, directory: int) -> int:
        """Open for reading. Anything more fails with EROFS, as on a read-only file system."""
        if flags & _WRITING:
            _refuse()
        return super().open(label, name, flags, mode, directory)

    create: Callable[..., NoReturn] = _refuse
    pwrite: Callable[..., NoReturn] = _refuse
    ftruncate: Callable[..., NoReturn] = _refuse
    setxattr: Callable[..., NoReturn] = _refuse
    removexattr: Callable[..., NoReturn] = _refuse
    fchmod: Callable[..., NoReturn] = _refuse
    chmod: Callable[..., NoReturn] = _refuse
    fchown: Callable[..., NoReturn] = _refuse
    chown: Callable[..., NoReturn] = _refuse
    futimens: Callable[..., NoReturn] = _refuse
    set_mtime: Callable[..., NoReturn] = _refuse
    utimens: Callable[..., NoReturn] = _refuse
    mkdir: Callable[..., NoReturn] = _refuse
    mknod: Callable[..., NoReturn] = _refuse
    symlink: Callable[..., NoReturn] = _refuse
    link: Callable[..., NoReturn] = _refuse
    unlink: Callable[..., NoReturn] = _refuse
    rmdir: Callable[..., NoReturn] = _refuse
    rename: Callable[..., NoReturn] = _refuse
    fsync: Callable[..., None] = _nothing_to_sync
    fdatasync: Callable[..., None] = _nothing_to_sync
    syncfs: Callable[..., None] = _nothing_to_sync

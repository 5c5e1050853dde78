"""The blocks that a file system keeps for root: a daemon of root must not give them away to the users it serves.

ext2, ext3, ext4 and f2fs give their last blocks to one user (root, unless the mount names another one), by the
thread's file-system user id, and to threads with CAP_SYS_RESOURCE (ext4_has_free_clusters() in fs/ext4/balloc.c).
The same capability passes hard limits of quotas (ignore_hardlimit() in fs/quota/dquot.c). A quota charges the
file's owner in any case. A write-back comes without a caller, so the daemon gives up both rights for as long as it
serves, and not for each write. That costs nothing.

The rights belong to a thread. Threads that the event loop starts inherit its rights.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# linux/magic.h
_EXT = 0xEF53
_F2FS = 0xF2F52010
_OVERLAY = 0x794C7630
_NOBODY = 65534

# linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_RESOURCE = 24

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.argtypes = (ctypes.c_uint,)
_libc.setfsuid.restype = ctypes.c_uint


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    """The lower 32 of them, then the upper ones."""

    _fields_ = tuple(
        (f"{name}{half}", ctypes.c_uint32) for half in (0, 1) for name in ("effective", "permitted", "inheritable")
    )


@contextmanager
def without_reserve(backing_fd: int) -> Iterator[bool]:
    """Give up, during a ``with`` block, the blocks that only root may take, on the file system of a directory.

    The value is whether no program that is served can take it. On an overlay a program can, since an overlay
    writes with the rights of the user who mounted it; so it can where the kernel refuses.
    """
    if os.geteuid() != 0:
        yield True
        return
    before = _capabilities()
    kind = _file_system(backing_fd)
    owner = os.fstat(backing_fd).st_uid or _NOBODY
    # a network file system shows the user id to its server
    spared = _serve_as(owner if kind in (_EXT, _F2FS) else None, before) and kind != _OVERLAY
    try:
        yield spared
    finally:
        _libc.setfsuid(0)
        _set_capabilities(before)


@contextmanager
def with_own_rights() -> Iterator[None]:
    """Take back all of the daemon's rights during a ``with`` block, for files of its own."""
    served_as = _libc.setfsuid(os.geteuid())
    try:
        yield
    finally:
        if served_as != os.geteuid():
            _serve_as(served_as, _capabilities())


def _serve_as(uid: int | None, capabilities: _Capabilities) -> bool:
    """Take a file-system user id, and all *capabilities* but one; return whether that succeeded.

    Together with the user id the kernel takes the capabilities away that concern files. They are needed.
    """
    if uid is not None:
        _libc.setfsuid(uid)
    mask = ~(1 << _CAP_SYS_RESOURCE)
    fewer = _Capabilities.from_buffer_copy(capabilities)
    fewer.effective0 = capabilities.permitted0 & mask
    fewer.effective1 = capabilities.permitted1
    # with an id that cannot be, setfsuid(2) changes nothing and returns the present one
    return _set_capabilities(fewer) and uid in (None, _libc.setfsuid(-1))


def _capabilities() -> _Capabilities:
    found = _Capabilities()
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    if _libc.capget(ctypes.byref(header), ctypes.byref(found)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found


def _set_capabilities(wanted: _Capabilities) -> bool:
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    done: int = _libc.capset(ctypes.byref(header), ctypes.byref(wanted))
    return done == 0


def _file_system(fd: int) -> int:
    """Return the number of the kind of file system that *fd* is on; 0 if the kernel does not say."""
    answer = ctypes.create_string_buffer(512)  # struct statfs, of which only the first field matters
    if _libc.fstatfs(fd, answer) != 0:
        return 0
    return ctypes.c_long.from_buffer(answer).value & 0xFFFFFFFF

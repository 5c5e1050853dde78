"""System calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
#: For :func:`utimens`: now, and leave as it is.
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _name in ("closedir", "readdir64", "telldir", "rewinddir"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.truncate.argtypes = [ctypes.c_char_p, ctypes.c_int64]


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def renameat2(old: Path, new: Path, flags: int) -> None:
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def file_handle(directory: int, name: str) -> bytes:
    """The handle of a file: a struct file_handle with its bytes (name_to_handle_at(2))."""
    room = 128  # MAX_HANDLE_SZ
    handle = ctypes.create_string_buffer(room.to_bytes(4, sys.byteorder), 8 + room)
    mount = ctypes.c_int()
    _check(_libc.name_to_handle_at(directory, os.fsencode(name), handle, ctypes.byref(mount), 0))
    return handle.raw


def open_by_handle(mount: int, handle: bytes) -> int:
    """Open a file for reading; return its descriptor."""
    fd: int = _libc.open_by_handle_at(mount, ctypes.create_string_buffer(handle), os.O_RDONLY)
    _check(min(fd, 0))
    return fd


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def utimens(path: Path, atime: int | tuple[int, int], mtime: int | tuple[int, int]) -> None:
    """Set times, each a pair of seconds and nanoseconds or UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)()
    for place, time in enumerate((atime, mtime)):
        times[place].seconds, times[place].nanoseconds = time if isinstance(time, tuple) else (0, time)
    _check(_libc.utimensat(_AT_FDCWD, os.fsencode(path), times, _AT_SYMLINK_NOFOLLOW))


def fallocate(fd: int, mode: int, offset: int, size: int) -> None:
    _check(_libc.fallocate(fd, mode, offset, size))


class DirectoryStream:
    """opendir(3) and its family, with positions."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self) -> bytes | None:
        """The next name; none at the end."""
        entry = self.entry()
        return entry[2] if entry else None

    def entry(self) -> tuple[int, int, bytes] | None:
        """Number, type (DT_…) and name of the next one; none at the end."""
        entry = _libc.readdir64(self._stream)
        if not entry:
            return None
        # struct dirent64: d_ino and d_off of 8 bytes, d_reclen of 2, d_type of 1, d_name
        number = int.from_bytes(ctypes.string_at(entry, 8), sys.byteorder)
        return number, ctypes.string_at(entry + 18, 1)[0], ctypes.string_at(entry + 19)

    def rest(self) -> list[bytes]:
        """All names from here on."""
        names = []
        while (name := self.read()) is not None:
            names.append(name)
        return names

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def entries(path: Path) -> dict[bytes, tuple[int, int]]:
    """Number and type (DT_…) of everything in a directory, as it tells them without a stat."""
    stream = DirectoryStream(path)
    found = {}
    while (entry := stream.entry()) is not None:
        found[entry[2]] = entry[:2]
    stream.close()
    return {name: told for name, told in found.items() if name not in (b".", b"..")}


class _Handle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("content", ctypes.c_ubyte * 128))


class FileHandle:
    """name_to_handle_at(2): what names a file for all times, whatever its path."""

    def __init__(self, path: Path) -> None:
        self._handle = _Handle(128)
        mount_id = ctypes.c_int()
        _check(
            _libc.name_to_handle_at(
                _AT_FDCWD, os.fsencode(path), ctypes.byref(self._handle), ctypes.byref(mount_id), 0
            )
        )

    def open(self, mount: int, flags: int = os.O_RDONLY) -> int:
        """open_by_handle_at(2), for root alone; returns a descriptor.

        :param mount: a descriptor of anything on the same mount
        """
        fd = int(_libc.open_by_handle_at(mount, ctypes.byref(self._handle), flags))
        _check(0 if fd >= 0 else -1)
        return fd

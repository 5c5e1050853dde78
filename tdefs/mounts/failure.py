"""Why the kernel or fusermount3 did not mount, as far as this process can see: libfuse says only what failed."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from dataclasses import dataclass
from errno import EACCES, ENODEV, ENOENT, ENXIO, EPERM
from pathlib import Path

DEVICE = Path("/dev/fuse")

_CAP_SYS_ADMIN = 21  # linux/capability.h
_PR_GET_NO_NEW_PRIVS = 39  # linux/prctl.h
_HELPER = "fusermount3"
_FUSE_CONFIG = Path("/etc/fuse.conf")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountRefusal:
    """What prevents a mount, and what to do about it."""

    reason: str
    hint: str


def why_not_mounted(mountpoint: Path, options: set[str]) -> MountRefusal:
    """Return why this process could not mount at *mountpoint*."""
    return (
        _device()
        or (_rights_of_root() if os.geteuid() == 0 else _helper() or _rights_of_user(mountpoint, options))
        or MountRefusal(
            "libfuse has said more on standard error",
            "check the options, and the permissions of the mount point; AppArmor or SELinux may also forbid to "
            "mount, in a container above all: see the kernel's log",
        )
    )


def _device() -> MountRefusal | None:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        reason = f"{DEVICE} cannot be opened: {error.strerror}"
        if error.errno in (ENOENT, ENODEV, ENXIO):
            return MountRefusal(
                reason,
                "load the kernel's module with 'modprobe fuse'; in a container start that with --device /dev/fuse",
            )
        if error.errno == EPERM:
            return MountRefusal(
                reason, "the container is not allowed to use the device: start it with --device /dev/fuse"
            )
        if error.errno == EACCES:
            return MountRefusal(
                reason, f"let this user open it ('chmod 666 {DEVICE}', as udev does), or mount as root"
            )
        return MountRefusal(reason, "see the kernel's log")
    return None


def _rights_of_root() -> MountRefusal | None:
    if _has_capability("CapEff"):
        return None
    return MountRefusal(
        "this process of root's lacks CAP_SYS_ADMIN, which mounting needs",
        "start the container with --cap-add SYS_ADMIN --device /dev/fuse, or the service without a "
        "CapabilityBoundingSet= that takes it away",
    )


def _helper() -> MountRefusal | None:
    """Return what keeps fusermount3 from mounting for a user other than root."""
    found = shutil.which(_HELPER)
    if found is None:
        return MountRefusal(f"{_HELPER} is not installed", "install the package fuse3, or mount as root")
    if _libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
        return MountRefusal(
            f"no_new_privs is set, so that {_HELPER}, which is setuid root, gets no rights",
            "mount as root, or without NoNewPrivileges= and what implies it in the systemd unit, without "
            "--security-opt no-new-privileges in the container",
        )
    status = Path(found).stat()
    if not status.st_mode & stat.S_ISUID or status.st_uid != 0 or os.statvfs(found).f_flag & os.ST_NOSUID:
        return MountRefusal(
            f'"{found}" is not setuid root, or lies on a file system that is mounted nosuid',
            f"'chown root {found}' and 'chmod u+s {found}', or mount as root",
        )
    if not _has_capability("CapBnd"):
        return MountRefusal(
            "CAP_SYS_ADMIN, which mounting needs, is taken away from this process and its children",
            "start the container with --cap-add SYS_ADMIN --device /dev/fuse, or the service without a "
            "CapabilityBoundingSet= that takes it away",
        )
    return None


def _rights_of_user(mountpoint: Path, options: set[str]) -> MountRefusal | None:
    if {"allow_other", "allow_root"} & options and not _others_are_allowed():
        return MountRefusal(
            f'the option allow_other needs the line "user_allow_other" in {_FUSE_CONFIG}',
            "add the line, or leave the option out",
        )
    if not os.access(mountpoint, os.W_OK):
        return MountRefusal(
            f'this user may not write to the mount point "{mountpoint}", which {_HELPER} demands',
            "give the directory to this user, or mount as root",
        )
    return None


def _others_are_allowed() -> bool:
    try:
        return "user_allow_other" in _FUSE_CONFIG.read_text().splitlines()
    except (OSError, ValueError):
        return False


def _has_capability(which: str) -> bool:
    """Return whether CAP_SYS_ADMIN is in one of this process's sets (proc(5)); True if that cannot be read."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return bool(int(fields.get(which, "ffffffffffffffff"), 16) >> _CAP_SYS_ADMIN & 1)

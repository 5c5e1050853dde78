"""The kernel's lists of mounts, in this mount namespace and in others (proc(5), mount_namespaces(7))."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

FUSE_TYPE = "fuse.tdefs"
OWN = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of /proc/PID/mountinfo (proc(5))."""

    device: str
    """``MAJOR:MINOR``."""
    mountpoint: Path
    kind: str
    source: str
    options: frozenset[str]
    """Those of the mount and those of the file system."""
    number: int = 0
    """The number of the mount; no other mount on this host has it, in any namespace."""
    parent: int = 0
    """The number of the mount that the mount point lies in."""
    root: str = "/"
    """The directory of the file system that is seen at the mount point."""
    peers: str = ""
    """The peer group to which mounts and unmounts here are passed on; empty for none."""
    master: str = ""
    """The peer group from which mounts and unmounts come here; empty for none."""

    @property
    def user(self) -> int | None:
        """The user who mounted a FUSE file system; the kernel ensures that this is true."""
        found = (option.removeprefix("user_id=") for option in self.options if option.startswith("user_id="))
        return next((int(number) for number in found if number.isdecimal()), None)


def all_mounts(process: Path = OWN) -> Iterator[MountInfo]:
    """Yield all mounts that *process*, a directory in /proc, can see, the topmost last."""
    for line in os.fsdecode((process / "mountinfo").read_bytes()).splitlines():
        fields = line.split(" ")
        end = fields.index("-")
        kind, source, options = fields[end + 1 :][:3]
        both = frozenset([*fields[5].split(","), *options.split(",")])
        passed_on = dict(field.split(":", 1) for field in fields[6:end] if ":" in field)
        yield MountInfo(
            fields[2],
            Path(_unescape(fields[4])),
            kind,
            _unescape(source),
            both,
            number=int(fields[0]),
            parent=int(fields[1]),
            root=_unescape(fields[3]),
            peers=passed_on.get("shared", ""),
            master=passed_on.get("master", ""),
        )


def strangers_mount(
    trusted: Collection[int], *, number: int = 0, device: str = "", place: Path | None = None
) -> int | None:
    """Return the user who serves a FUSE mount, if it is not one of the *trusted*; ``None`` for any other mount.

    That user decides what lies there, whose it is, and whether an answer ever comes.

    :param number: of the mount; or its *device*, or the *place* where it is mounted.
    """
    found = None
    for mount in all_mounts():
        if mount.number == number or mount.device == device or mount.mountpoint == place:
            found = mount.user if mount.user not in trusted else None
    return found


def source_name(backing: Path) -> str:
    """Return *backing* as the name of a mount's source, in characters that no option parser changes."""
    return quote(os.fsencode(backing))


def backing_of(source: str) -> Path:
    """Return the backing directory for a *source* made by :func:`source_name`."""
    return Path(os.fsdecode(unquote_to_bytes(source)))


@dataclass(frozen=True, slots=True)
class Namespace:
    """The mounts that can be seen from one mount namespace, or from one root directory in it."""

    process: Path
    """The directory in /proc of a process in it."""
    is_own: bool
    mounts: list[MountInfo]


def processes() -> list[Path]:
    """Return the directories in /proc of all processes, the oldest numbers first."""
    return sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name))


def name_of(process: Path) -> str:
    """Return the name and the number of a process, for a message."""
    name = ""
    with suppress(OSError):
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return f"{name or 'a process'} (process {process.name})"


def namespaces() -> Iterator[Namespace]:
    """Yield this mount namespace, then each other one of a process that this user may look at."""
    own = os.readlink(OWN / "ns/mnt")  # noqa: PTH115 - it names a namespace, no path
    yield Namespace(OWN, is_own=True, mounts=list(all_mounts()))
    seen = {(own, os.readlink(OWN / "root"))}  # noqa: PTH115
    for process in processes():
        with suppress(OSError):
            namespace = os.readlink(process / "ns/mnt")  # noqa: PTH115
            # a process with a root directory of its own sees only what is mounted below
            place = namespace, os.readlink(process / "root")  # noqa: PTH115
            if place not in seen:
                mounts = list(all_mounts(process))
                seen.add(place)
                yield Namespace(process, is_own=namespace == own, mounts=mounts)


def _unescape(field: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(field))
    return os.fsdecode(raw)

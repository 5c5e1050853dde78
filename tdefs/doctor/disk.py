"""The disk below a backing directory: whether synced data survives a power failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tdefs.doctor.findings import Finding, risk
from tdefs.mounts.table import MountInfo, all_mounts

_VOLATILE = frozenset({"tmpfs", "ramfs"})
_REMOTE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "vboxsf"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.vmhgfs-fuse"),
    }
)
#: Mount options with which a sync returns before the disk has written.
_FORGETFUL_OPTIONS = frozenset(
    {"nobarrier", "barrier=0", "barrier=none", "fsync_mode=nobarrier", "nointegrity", "volatile"}
)
_MEMORY_DEVICES = ("ram", "zram")


def examine_disk(backing: Path, sysfs: Path = Path("/sys")) -> Iterator[Finding]:
    """Yield the reasons why the disk below *backing* may lose synced data.

    :param sysfs: where the kernel describes block devices.
    """
    mount = mount_of(backing)
    if mount is None:
        return
    if mount.kind in _VOLATILE:
        yield risk(f"{backing} is on {mount.kind}: it is gone when the host stops", "move it to a disk")
    elif mount.kind in _REMOTE:
        yield risk(
            f"{backing} is on {mount.kind}: whether a sync reaches the other side's disk is not known here",
            "use a local disk or a block device",
        )
    elif mount.kind == "overlay":
        yield risk(
            f"{backing} is on an overlay, as in a container without a volume: it is gone with the container",
            "put it on a volume of the host's",
        )
    for option in sorted(_FORGETFUL_OPTIONS & mount.options):
        yield risk(
            f"the disk below is mounted with {option}: a power failure can lose what was synced",
            "mount it without that option, unless the disk's cache has a battery",
        )
    yield from _devices(sysfs / "dev" / "block" / mount.device, sysfs)


def mount_of(path: Path) -> MountInfo | None:
    """Return the mount that *path* lies on; by its name, since on btrfs the device numbers differ."""
    real = Path(os.path.realpath(path))
    found: MountInfo | None = None
    with suppress(OSError):
        for mount in all_mounts():
            above = mount.mountpoint == real or mount.mountpoint in real.parents
            if above and (found is None or len(mount.mountpoint.parts) >= len(found.mountpoint.parts)):
                found = mount
    return found


def _devices(device: Path, sysfs: Path) -> Iterator[Finding]:
    """Examine a block device, and those below it where it is made of others."""
    if not device.exists():
        return
    device = device.resolve()
    if (device / "partition").exists():
        device = device.parent
    if device.name.startswith(_MEMORY_DEVICES):
        yield risk(
            f"the disk below is {device.name}, which is memory: it is gone when the host stops", "use a disk"
        )
    with suppress(FileNotFoundError):
        yield from examine_disk(Path(_text(device / "loop" / "backing_file")), sysfs)
    with suppress(FileNotFoundError):
        for below in sorted((device / "slaves").iterdir()):
            yield from _devices(below, sysfs)
    # sd(4), and "Explicit volatile write back cache control" in the kernel's documentation: a kernel that believes
    # that there is no cache never flushes it
    with suppress(FileNotFoundError):
        flushed = _text(device / "queue" / "write_cache") != "write through"
        cached = any("write back" in _text(kind) for kind in (device / "device/scsi_disk").glob("*/cache_type"))
        if cached and not flushed:
            yield risk(
                f"{device.name} has a write cache, and the kernel does not flush it",
                f'echo "write back" > /sys/block/{device.name}/queue/write_cache, unless it has a battery',
            )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()

"""The host of a mount: the disk below, memory, limits, and the status of the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tdefs.daemon.status import DaemonStatus
from tdefs.doctor.disk import examine_disk
from tdefs.doctor.findings import Finding, advice, risk
from tdefs.mounts.known import kernel_limits_raised
from tdefs.volume.description import Volume

_ENOUGH_FILES = 4096


def examine_host(volume: Volume, mountpoint: Path, daemon: DaemonStatus | None) -> Iterator[Finding]:
    """Yield weaknesses of a mounted volume; *daemon* is the status of the daemon, if it answers."""
    yield from examine_disk(volume.backing)
    if daemon is None:
        yield advice(
            "the daemon does not answer this user: what only it knows is not examined",
            "run tdefs doctor as root, or as the user who mounted",
        )
    else:
        yield from _daemon(daemon)
        keystore = Path(daemon.keystore)
        if volume.backing in keystore.parents:
            yield advice(
                "the keystore lies in the backing directory: if the disk is lost, the keys are lost with it",
                f"keep a copy of {keystore} elsewhere",
            )
    if not kernel_limits_raised(mountpoint):
        yield advice(
            "the kernel's read-ahead and dirty limits of the mount are those of FUSE: scans and loads are slower",
            "let the daemon run as root, or raise them in /sys/class/bdi after mounting",
        )


def _daemon(daemon: DaemonStatus) -> Iterator[Finding]:
    failures = {name: count for name, count in daemon.failures.items() if count}
    if failures:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(failures.items()))
        yield risk(
            f"requests failed since the mount: {counts}", f"see the log: {daemon.log_file or 'its terminal'}"
        )
    if not daemon.memory_locked and _has_swap():
        yield risk(
            "the daemon's memory is not locked, and the host swaps: keys may get onto a disk in the clear",
            "let it run as root or with CAP_IPC_LOCK (the systemd unit does), or encrypt the swap space",
        )
    if not daemon.reserve_spared:
        yield risk(
            "the daemon serves with root's right to the blocks that the disk keeps for root, and past quotas: the "
            "cluster's user can fill the disk to the last block",
            "keep the backing directory on a disk, not on an overlay, or let the cluster's user mount it",
        )
    if daemon.page_cipher != "compiled":
        yield advice(
            "pages are encrypted by the slower path, in Python",
            "install a C compiler and OpenSSL's headers (libssl-dev), then tdefs again",
        )
    limit = _file_limit(daemon.pid)
    if limit is not None and limit < _ENOUGH_FILES:
        yield risk(
            f"the daemon may open {limit} files: PostgreSQL will see EMFILE when it opens more",
            "raise the hard limit (ulimit -Hn, LimitNOFILE of the unit), then mount again",
        )


def _has_swap() -> bool:
    with suppress(OSError):
        return len(Path("/proc/swaps").read_text(encoding="ascii", errors="replace").splitlines()) > 1
    return False


def _file_limit(pid: int) -> int | None:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
    return None

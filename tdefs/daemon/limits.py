"""Limits that a daemon may reach while it serves: a mount warns of those that are too low."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.data.workers import MOST_THREADS
from tdefs.host import RESERVED_BYTES, has_capability
from tdefs.mounts.table import all_mounts

# linux/capability.h
_CAP_SYS_ADMIN = 21
_CAP_SYS_RESOURCE = 24

#: Threads, one that passes changed names on to the kernel, and fusermount3.
NEEDED_PROCESSES = MOST_THREADS + 4
#: The reserve, the threads' stacks, and tables for as many inodes as a large cluster has files.
NEEDED_BYTES = 2 * RESERVED_BYTES


@dataclass(frozen=True, slots=True)
class LowLimit:
    """A limit that leaves less than the daemon may need, and what to do."""

    message: str
    hint: str


def low_limits() -> list[LowLimit]:
    """Return the limits that are too low for this process, which is about to serve a mount."""
    return [*_low_processes(), *_low_memory()]


def _low_processes() -> Iterator[LowLimit]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # the kernel does not apply this limit to these (kernel/fork.c)
    exempt = os.getuid() == 0 or has_capability(_CAP_SYS_ADMIN) or has_capability(_CAP_SYS_RESOURCE)
    if soft != resource.RLIM_INFINITY and not exempt:
        used = _processes_of(os.getuid())
        if soft - used < NEEDED_PROCESSES:
            yield LowLimit(
                f"the limit on processes of this user is {soft}, and {used} are in use: the daemon may lack "
                f"threads (up to {NEEDED_PROCESSES}), and wait for the disk with one request after the other",
                "raise it: ulimit -u, LimitNPROC= of the unit, or /etc/security/limits.conf",
            )
    for group in _groups_of_pids():
        with suppress(OSError, ValueError):
            most = int((group / "pids.max").read_text(encoding="ascii"))  # or the word max
            used = int((group / "pids.current").read_text(encoding="ascii"))
            if most - used < NEEDED_PROCESSES:
                yield LowLimit(
                    f'the control group "{group}" may hold {most} processes, and has {used}: the daemon may lack '
                    f"threads (up to {NEEDED_PROCESSES}), and wait for the disk with one request after the other",
                    "raise it: pids.max, --pids-limit of the container, or TasksMax= of the unit",
                )


def _processes_of(user: int) -> int:
    """Return how many processes and threads the kernel counts for a user, as far as they can be seen."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, KeyError, ValueError, IndexError):
            text = (process / "status").read_text(encoding="utf-8", errors="replace")
            fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            if int(fields["Uid"].split()[0]) == user:
                total += int(fields["Threads"])
    return total


def _groups_of_pids() -> Iterator[Path]:
    """Yield the control groups that count this process, from the innermost to the outermost that can be seen."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "pids" not in controllers.split(","):
                continue
            for mount in all_mounts():
                if (
                    mount.kind == "cgroup2"
                    if number == "0"
                    else mount.kind == "cgroup" and "pids" in mount.options
                ):
                    # in a container the path may be that of the host, and what is mounted the container's own
                    inner = mount.mountpoint / path.lstrip("/")
                    group = inner if inner.is_dir() else mount.mountpoint
                    yield group
                    while group != mount.mountpoint:
                        group = group.parent
                        yield group
                    break


def _low_memory() -> Iterator[LowLimit]:
    for name, number, field, raise_by in (
        ("address space", resource.RLIMIT_AS, "VmSize", "ulimit -v, or LimitAS= of the unit"),
        ("data", resource.RLIMIT_DATA, "VmData", "ulimit -d, or LimitDATA= of the unit"),
    ):
        soft, _ = resource.getrlimit(number)
        used = _kibibytes(field) << 10
        if soft != resource.RLIM_INFINITY and soft - used < NEEDED_BYTES:
            yield LowLimit(
                f"the limit on {name} is {soft >> 20} MiB, and {used >> 20} MiB are in use: the daemon may need "
                f"{NEEDED_BYTES >> 20} MiB more, and requests that find no memory fail",
                f"raise it: {raise_by}",
            )


def _kibibytes(field: str) -> int:
    """Return a figure of this process's memory (proc(5), status)."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0])
    return 0

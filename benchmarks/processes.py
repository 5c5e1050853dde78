"""Processor time and memory of the processes that are measured, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """Seconds in user and in system mode."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __add__(self, other: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(self.user + other.user, self.system + other.system)

    def __sub__(self, other: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(self.user - other.user, self.system - other.system)


def processor_time(roots: list[int]) -> ProcessorTime:
    """Return what the processes and all their descendants have used so far, those included that have ended.

    A descendant that has ended counts once its parent has waited for it, as the postmaster does at once.
    """
    total = ProcessorTime(0, 0)
    for pid in with_descendants(roots):
        # A process that is gone by now has been waited for, or is not ours.
        with suppress(OSError):
            # proc_pid_stat(5), counted after the name: utime stime cutime cstime are fields 14 to 17
            user, system, waited_user, waited_system = map(int, _stat(pid)[11:15])
            total += ProcessorTime((user + waited_user) / _TICK, (system + waited_system) / _TICK)
    return total


def resident_mb(pids: list[int]) -> float:
    """Return the resident memory of the processes, in MB."""
    return sum(_status_kb(pid, "VmRSS") for pid in pids) / 1024


def peak_resident_mb(pids: list[int]) -> float:
    """Return the highest resident memory since the last :func:`forget_peak`, in MB."""
    return sum(_status_kb(pid, "VmHWM") for pid in pids) / 1024


def forget_peak(pids: list[int]) -> None:
    """Start :func:`peak_resident_mb` anew."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def with_descendants(roots: list[int]) -> set[int]:
    """Return the processes, with their children and those of their children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: the state is the first, the parent the second."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _status_kb(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(f"process {pid} has no {name}")

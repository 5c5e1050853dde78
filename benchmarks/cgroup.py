"""A control group that limits the memory of server and daemon together, as a small host would."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import wait_until

_MOUNTS = Path("/proc/self/mounts")
_PROC = Path("/proc")
#: Seconds that the kernel may take until a group whose processes have ended is empty.
_LIMIT = 20


class NoControlGroups(Exception):
    """Memory cannot be limited on this machine, and why."""


def hierarchy(mounts: Path = _MOUNTS) -> Path:
    """Return the root of the control groups v2 below which a group can limit memory.

    :raises NoControlGroups: there is none. Nothing is switched on for it: that is the administrator's to decide.
    """
    fields = [line.split() for line in mounts.read_text().splitlines()]
    roots = [Path(field[1]) for field in fields if field[2] == "cgroup2"]
    if not roots:
        raise NoControlGroups("no control groups v2 are mounted")
    root = roots[0]
    if "memory" not in (root / "cgroup.controllers").read_text().split():
        raise NoControlGroups(f'"{root}" has no memory controller: control groups v1 may have it')
    if "memory" not in (root / "cgroup.subtree_control").read_text().split():
        raise NoControlGroups(f'"{root}" does not give the memory controller to the groups below it')
    if not os.access(root, os.W_OK):
        raise NoControlGroups(f'"{root}" cannot be written')
    return root


class MemoryGroup:
    """A group with a limit, from ``with`` to its end; then what still runs in it is where it was before."""

    def __init__(self, root: Path, limit: int, proc: Path = _PROC) -> None:
        """
        :param root: of the hierarchy
        :param limit: of anonymous memory and page cache together, in bytes
        """
        self._root = root
        self._limit = limit
        self._proc = proc
        self._path = root / f"tdefs-bench-{os.getpid()}"
        self._origins: dict[int, Path] = {}

    def __enter__(self) -> Self:
        self._path.mkdir()
        (self._path / "memory.max").write_text(f"{self._limit}\n")
        return self

    def add(self, pids: Iterable[int]) -> None:
        """Move processes into the group. What they have in memory already stays charged where it was."""
        for pid in pids:
            self._origins[pid] = self._group_of(pid)
            (self._path / "cgroup.procs").write_text(f"{pid}\n")

    def _origin_of(self, pid: int) -> Path:
        """Where a process goes back to: if it began in the group, where the first of the others came from."""
        return self._origins.get(pid) or next(iter(self._origins.values()), self._root)

    def _group_of(self, pid: int) -> Path:
        for line in (self._proc / str(pid) / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return self._root / line.removeprefix("0::").strip().lstrip("/")
        raise LookupError(f"process {pid} is in no control group v2")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in map(int, (self._path / "cgroup.procs").read_text().split()):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                (self._origin_of(pid) / "cgroup.procs").write_text(f"{pid}\n")
        if not wait_until(self._is_removed, _LIMIT):
            raise TimeoutError(f'the control group "{self._path}" does not get empty')

    def _is_removed(self) -> bool:
        try:
            self._path.rmdir()
        except OSError:
            return False
        return True

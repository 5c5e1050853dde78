"""The control group with a limit of memory, on directories that look like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.cgroup import MemoryGroup, NoControlGroups, hierarchy

_NAME = f"tdefs-bench-{os.getpid()}"


def mounts_of(tmp_path: Path, controllers: str, given: str) -> Path:
    """A table of mounts with one hierarchy v2, and that hierarchy's root."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text(f"{controllers}\n")
    (root / "cgroup.subtree_control").write_text(f"{given}\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"tmpfs /tmp tmpfs rw 0 0\ncgroup2 {root} cgroup2 rw 0 0\n")
    return mounts


def test_a_hierarchy_that_can_limit_memory_is_found(tmp_path: Path) -> None:
    assert hierarchy(mounts_of(tmp_path, "cpu memory", "memory pids")) == tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("controllers", "given", "said"),
    [
        ("cpu io", "cpu", "has no memory controller: control groups v1 may have it"),
        ("cpu memory", "cpu", "does not give the memory controller to the groups below it"),
    ],
)
def test_why_memory_cannot_be_limited_is_said(tmp_path: Path, controllers: str, given: str, said: str) -> None:
    with pytest.raises(NoControlGroups, match=said):
        hierarchy(mounts_of(tmp_path, controllers, given))


def test_a_machine_without_control_groups_v2_is_named(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n")
    with pytest.raises(NoControlGroups, match="no control groups v2 are mounted"):
        hierarchy(mounts)


def test_a_process_that_still_runs_goes_back_to_the_group_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (root / "system.slice").mkdir(parents=True)
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text("12:memory:/old\n0::/system.slice\n")
    # The kernel's files go with their directory.
    monkeypatch.setattr(Path, "rmdir", lambda path: path.rename(tmp_path / "removed"))
    with MemoryGroup(root, 1 << 20, proc) as group:
        group.add([7])
        assert (root / _NAME / "memory.max").read_text() == "1048576\n"
        assert (root / _NAME / "cgroup.procs").read_text() == "7\n"
    assert (root / "system.slice" / "cgroup.procs").read_text() == "7\n"
    assert not (root / _NAME).exists()

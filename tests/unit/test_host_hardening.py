"""The promises of tdefs.host, each in a process of its own: they cannot be undone in this one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()


def test_hardened_process_dumps_no_core_and_its_children_neither() -> None:
    program = """
import ctypes, resource, subprocess
from tdefs.host import harden_process
harden_process()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
subprocess.run(["/bin/sh", "-c", "ulimit -c"])
"""
    assert run(program) == "(0, 0) 0\n0"


def test_small_limit_of_locked_memory_is_left_alone_without_the_capability() -> None:
    program = """
import os, resource
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
from tdefs.host import lock_memory
print(lock_memory())
print(len(bytearray(64 << 20)))
"""
    try:
        shown = run(program)
    except subprocess.CalledProcessError as error:
        if "ModuleNotFoundError" in str(error.stderr) or "PermissionError" in str(error.stderr):
            pytest.skip("another user cannot read this tree")
        raise
    assert shown == f"False\n{64 << 20}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to lock memory")
def test_process_with_the_right_locks_present_and_future_memory() -> None:
    program = """
from pathlib import Path
from tdefs.host import lock_memory
print(lock_memory())
kept = bytearray(32 << 20)
for offset in range(0, len(kept), 4096): kept[offset] = 1
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status.get("VmLck", "0 kB").split()[0]) >= 32 << 10)
"""
    locked, covers = run(program).split()
    if locked == "False":
        pytest.skip("this host grants no locked memory, not even to root")
    assert covers == "True"


def test_file_limit_is_raised_to_the_hard_limit() -> None:
    program = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from tdefs.host import raise_file_limit
print(raise_file_limit() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    assert run(program) == "True"

"""Where threads or memory are scarce the mount says so early, serves, and lives."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tdefs.daemon.limits import _groups_of_pids
from tdefs.data.workers import FIRST_THREADS
from tdefs.errors import Exit
from tests.support.account import Account
from tests.support.caches import drop_caches
from tests.support.children import in_child, needs_root
from tests.support.mounts import is_mounted
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import LIMIT, Volume

CONTENT = os.urandom(4 << 20)
FILES = 6


def user(name: str) -> Account:
    """A user of whom nothing else runs: the limit on processes counts all that are of one user."""
    entry = pwd.getpwnam(name)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def group_that_counts() -> Path | None:
    for above in _groups_of_pids():
        path = above / f"tdefs-test-{os.getpid()}"
        with suppress(OSError):
            path.mkdir()
            if (path / "pids.max").exists():
                return path
            path.rmdir()
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group that counts the processes in it."""
    path = group_that_counts()
    if path is None:
        pytest.skip("no control group that counts processes can be had here")
    yield path
    assert wait_until(lambda: (path / "cgroup.procs").read_text() == "", 30)
    path.rmdir()


def use(directory: Path, *, cold: bool = True) -> None:
    """Writes, syncs and reads several files at a time, from the disk if that is possible."""

    def write(number: int) -> None:
        with (directory / f"file{number}").open("wb") as file:
            file.write(CONTENT)
            file.flush()
            os.fsync(file.fileno())

    with ThreadPoolExecutor(FILES) as pool:
        list(pool.map(write, range(FILES)))
    if cold:
        drop_caches(1)
    check(directory)


def check(directory: Path) -> None:
    with ThreadPoolExecutor(FILES) as pool:
        for content in pool.map(lambda number: (directory / f"file{number}").read_bytes(), range(FILES)):
            assert content == CONTENT


def limit(pid: int, what: str) -> None:
    subprocess.run(["prlimit", "--pid", str(pid), what], check=True)


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


# --- threads


@needs_root
@pytest.mark.parametrize(("processes", "name"), [(4, "games"), (12, "news")])
def test_a_limit_on_processes_is_told_and_costs_no_request(volume: Volume, processes: int, name: str) -> None:
    nobody = user(name)
    if Path("/dev/fuse").stat().st_mode & 0o006 != 0o006:
        pytest.skip("here no user but root may open /dev/fuse")
    subprocess.run(["chown", "-R", nobody.name, volume.root], check=True)
    program = nobody.command("prlimit", f"--nproc={processes}", *volume.program)
    words = ["mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log]
    done = subprocess.run(
        [*program, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stderr=(volume.root / "said").open("w"),
        timeout=LIMIT,
        check=False,
    )
    said = (volume.root / "said").read_text()
    assert done.returncode == Exit.OK, said
    assert f"tdefs: warning: the limit on processes of this user is {processes}, and " in said
    assert "HINT:  raise it: ulimit -u" in said
    (daemon,) = volume.daemons
    assert threads_of(daemon) <= processes
    before, volume.program = volume.program, program
    in_child(lambda: use(volume.mountpoint, cold=False), uid=nobody.uid, gid=nobody.gid)
    drop_caches(1)
    in_child(lambda: check(volume.mountpoint), uid=nobody.uid, gid=nobody.gid)
    send(daemon, signal.SIGTERM)
    assert wait_until(lambda: not is_alive(daemon), 30)
    volume.program = before
    assert not is_mounted(volume.mountpoint)
    assert [line for line in volume.complaints() if "limit on processes" not in line] == []


@needs_root
def test_threads_stay_where_others_take_all_processes_later(volume: Volume, group: Path) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    assert threads_of(daemon) > FIRST_THREADS
    (group / "pids.max").write_text("1")
    (group / "cgroup.procs").write_text(str(daemon))
    before = threads_of(daemon)
    use(volume.mountpoint)
    assert threads_of(daemon) == before
    volume.umount()
    assert volume.complaints() == []


@needs_root
def test_a_control_group_that_may_hold_few_processes_is_told(volume: Volume, group: Path) -> None:
    (group / "pids.max").write_text("9")
    before = volume.program
    volume.program = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"', *before]
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log)
    volume.program = before
    assert f'warning: the control group "{group}" may hold 9 processes' in done.stderr
    assert "pids.max" in done.stderr
    assert "may hold 9 processes" in volume.log.read_text()
    use(volume.mountpoint)
    volume.umount()


# --- memory


@needs_root
def test_a_daemon_that_gets_no_more_memory_goes_on_with_what_it_has(volume: Volume) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    for what in ("--as", "--data"):
        limit(daemon, f"{what}={16 << 20}:{16 << 20}")
    use(volume.mountpoint)
    assert volume.daemons == [daemon]
    volume.umount()
    assert volume.complaints() == []


def test_a_limit_on_memory_is_told(volume: Volume) -> None:
    before = volume.program
    volume.program = ["prlimit", f"--as={200 << 20}", *before]
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log)
    volume.program = before
    assert "tdefs: warning: the limit on address space is 200 MiB" in done.stderr
    assert "ulimit -v" in done.stderr
    assert "the limit on address space is 200 MiB" in volume.log.read_text()
    use(volume.mountpoint, cold=os.geteuid() == 0)
    volume.umount()


def test_a_mount_for_which_there_is_no_memory_is_refused(volume: Volume) -> None:
    before = volume.program
    volume.program = ["prlimit", f"--as={90 << 20}", *before]
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
    volume.program = before
    assert done.returncode == Exit.OS_ERROR
    assert "memory" in done.stderr
    assert "HINT" in done.stderr
    assert "Traceback" not in done.stderr
    assert not volume.is_mounted
    volume.mount()

"""scripts/quickstart.sh: it works, works again, recovers, and leaves nothing behind when it is told to stop."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import detach, is_mounted, mounts_below
from tests.support.processes import arguments, end, is_alive, is_postgres, processes_in, send, wait_until
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow(seconds=20)

REPOSITORY = Path(__file__).parents[2]
FOUND_NOTHING = "[ok] grep finds no stored secret"


@pytest.fixture
def directory(workspace: Workspace) -> Iterator[Path]:
    """A place with characters that a shell, a list and postgresql.conf treat in a special way."""
    path = workspace.directory("quick") / "it's a, place"
    yield path
    end(processes_in(path))
    for point in mounts_below(path):
        detach(point)


def quickstart(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the script without a terminal."""
    return subprocess.run(
        ["bash", REPOSITORY / "scripts" / "quickstart.sh", *words],
        cwd="/var/tmp",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_started(done: subprocess.CompletedProcess[str], rows: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"rows in the table: {rows}\n" in done.stdout
    assert f"{FOUND_NOTHING} ({rows} searched for)" in done.stdout
    assert "[failed]" not in done.stdout + done.stderr


def assert_stopped(directory: Path) -> None:
    done = quickstart("--stop", directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert mounts_below(directory) == []
    assert wait_until(lambda: not any(map(is_alive, processes_in(directory))), 5), [
        arguments(pid) for pid in processes_in(directory)
    ]


def test_quickstart_runs_twice_recovers_and_stops(directory: Path) -> None:
    first = quickstart(directory)
    assert_started(first, rows=1)
    assert is_mounted(directory / "mount")
    assert (directory / "passphrase").stat().st_mode & 0o777 == 0o600

    # What it says about connecting is true.
    connect = re.search(r"^Connect: +(.*)$", first.stdout, re.MULTILINE)
    assert connect
    answer = subprocess.run(
        ["bash", "-c", connect[1] + " -At -c 'TABLE quickstart'"],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.startswith("1|TOP-SECRET-"), answer.stderr

    assert_started(quickstart(directory), rows=2)

    # The daemon dies under a running server.
    for pid in processes_in(directory / "backing"):
        send(pid, signal.SIGKILL)
    assert_started(quickstart(directory), rows=3)

    # The server dies.
    for pid in processes_in(directory / "mount" / "pgdata"):
        if is_postgres(pid):
            send(pid, signal.SIGKILL)
    assert_started(quickstart(directory), rows=4)

    assert_stopped(directory)
    assert_stopped(directory)
    assert_started(quickstart(directory), rows=5)
    for pid in processes_in(directory / "backing"):
        send(pid, signal.SIGKILL)
    assert_stopped(directory)


def test_quickstart_finds_a_socket_directory_for_a_long_path(workspace: Workspace) -> None:
    directory = workspace.directory("quick") / ("long " * 25)
    assert_started(quickstart(directory), rows=1)
    sockets = (directory / "run" / "socket").readlink()
    assert sockets.exists()
    assert_stopped(directory)
    assert not sockets.exists()


def test_quickstart_refuses_a_directory_that_is_not_its_own(workspace: Workspace) -> None:
    directory = workspace.directory("full")
    (directory / "file").touch()
    done = quickstart(directory)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in directory.iterdir()] == ["file"]


def test_setup_is_quick_when_nothing_is_missing() -> None:
    setup = ["bash", str(REPOSITORY / "scripts" / "setup.sh")]
    subprocess.run(setup, check=True)
    began = time.monotonic()
    subprocess.run(setup, check=True)
    assert time.monotonic() - began < 2

"""A start that fails, at whatever step, leaves nothing: no process, no mount, and above all none that hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.mounts import mounts_below
from tests.support.processes import wait_until
from tests.support.volume import Volume

FAILING = Path(__file__).with_name("failing_start.py")
#: Longer than any start takes on a busy machine, and shorter than a mount that hangs.
SECONDS = 40


def start(volume: Volume, step: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            str(FAILING),
            "mount",
            *words,
            str(volume.backing),
            str(volume.mountpoint),
            *volume.unlock,
        ],
        env={"TDEFS_FAIL_AT": step, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def check_that_nothing_is_left(volume: Volume) -> None:
    assert wait_until(lambda: volume.daemons == [], 20), "a process is left"
    assert mounts_below(volume.root) == [], "a mount is left"
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"content")
    volume.umount()


@pytest.mark.parametrize("place", ["background", "foreground"])
@pytest.mark.parametrize(
    "step",
    [
        "threads",
        "device",
        "loop",
        "signals",
        "signals, later",
        "polling",
        "serving",
        "kernel limits",
        "control socket",
    ],
)
def test_a_step_that_fails_is_told_and_leaves_nothing(volume: Volume, place: str, step: str) -> None:
    with start(volume, step, *(["-f"] if place == "foreground" else [])) as command:
        try:
            _, said = command.communicate(timeout=SECONDS)
        finally:
            command.kill()
    assert command.returncode == Exit.MOUNT_FAILED, said
    assert f'tdefs: could not serve "{volume.mountpoint}"' in said
    assert "the test says so" in said
    check_that_nothing_is_left(volume)


def test_a_daemon_that_cannot_say_that_it_serves_does_not(volume: Volume) -> None:
    with start(volume, "ready") as command:
        _, said = command.communicate(timeout=SECONDS)
    assert command.returncode != Exit.OK, said
    check_that_nothing_is_left(volume)


def test_a_daemon_whose_parent_was_killed_while_it_began_does_not_stay(volume: Volume) -> None:
    """Who asked for it believes that it does not serve."""
    with start(volume, "slow") as command:
        assert wait_until(lambda: volume.is_mounted, SECONDS)
        command.kill()
    check_that_nothing_is_left(volume)


def test_a_control_socket_that_fails_does_not_keep_the_mount_from_serving(volume: Volume) -> None:
    with start(volume, "control socket, inside", "--log-file", str(volume.log)) as command:
        _, said = command.communicate(timeout=SECONDS)
    assert command.returncode == Exit.OK, said
    (volume.mountpoint / "file").write_bytes(b"content")
    assert wait_until(lambda: "unexpected error at the control socket" in volume.log.read_text(), 10)
    volume.umount()

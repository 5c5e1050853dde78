"""Several commands at one backing directory in the same moment: one wins, and the others say who."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.cli import umount
from tdefs.errors import Exit
from tdefs.volume.description import read_volume
from tdefs.volume.lock import is_running
from tdefs.volume.session_record import Session, write_session
from tests.crash.conftest import Dice
from tests.support.mounts import mounts_below
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace


class Command:
    """A tdefs command that runs."""

    def __init__(self, *words: str | Path) -> None:
        command = [str(TDEFS), *map(str, words)]
        # the daemon that a mount leaves behind closes its end of the pipe when it serves
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.said = ""

    def wait(self) -> int:
        assert self.process.stderr
        with self.process.stderr as errors:
            self.said = errors.read()
        return self.process.wait(60)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def mount(volume: Volume, point: Path) -> Command:
    return Command("mount", volume.backing, point, *volume.unlock, "--log-file", volume.log)


def served_by(volume: Volume, point: Path) -> int:
    """The daemon at a mount point; checks that it serves."""
    (point / "file").write_bytes(b"1" * 10_000)
    pid = json.loads(volume.tdefs("status", point, "--json").stdout)["pid"]
    assert is_alive(pid)
    assert isinstance(pid, int)
    return pid


def check_one_won(volume: Volume, commands: list[Command]) -> Path:
    """Checks that of several mounts exactly one serves and the others name it; returns its mount point."""
    codes = [command.wait() for command in commands]
    assert sorted(codes) == [Exit.OK, *[Exit.VOLUME_IN_USE] * (len(codes) - 1)], [one.said for one in commands]
    (point,) = mounts_below(volume.root)
    daemon = served_by(volume, point)
    winner = commands[codes.index(0)].process.pid
    for command, code in zip(commands, codes, strict=True):
        if code:
            named = re.search(r"DETAIL:  process (\d+) (has it mounted at|is about to mount it)", command.said)
            assert named, command.said
            assert int(named[1]) in (daemon, winner), f"{command.said}\nbut it is {daemon}, started by {winner}"
    return point


@pytest.mark.slow
def test_of_many_mounts_at_once_exactly_one_serves_and_the_others_name_it(volume: Volume, dice: Dice) -> None:
    """At the same and at different mount points, after a clean end and after a crash."""
    others = [volume.root / f"mnt{number}" for number in range(2 if dice.factor <= 1 else 8)]
    for point in others:
        point.mkdir()
    for turn in range(dice.rounds(3)):
        points = [volume.mountpoint] * 2 + others
        dice.random(turn).shuffle(points)
        point = check_one_won(volume, [mount(volume, point) for point in points])
        if turn % 2:
            assert Command("umount", point).wait() == Exit.OK
        else:
            daemon = served_by(volume, point)
            send(daemon, signal.SIGKILL)
            assert wait_until(lambda daemon=daemon: not is_alive(daemon), 10)  # type: ignore[misc]
            # the dead mount is replaced by exactly one
            check_one_won(volume, [mount(volume, point) for _ in range(2)])
            assert Command("umount", point).wait() == Exit.OK
        assert mounts_below(volume.root) == []


def test_a_dead_mount_is_left_alone_by_who_does_not_get_the_volume(volume: Volume) -> None:
    """Whoever holds the volume may have replaced the dead mount by a live one since it was looked at."""
    volume.mount()
    volume.kill()
    with _opened(volume.backing / ".tdefs") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = mount(volume, volume.mountpoint)
        assert command.wait() == Exit.VOLUME_IN_USE
        assert f"process {os.getpid()} is about to mount it" in command.said
        assert volume.is_mounted


def test_umount_does_not_wait_for_the_daemon_of_the_next_mount(volume: Volume) -> None:
    volume.mount()
    volume.umount()
    described = read_volume(volume.backing)
    mine = Session(os.getpid(), str(volume.mountpoint), clean=False).authenticated(bytes(32))
    with _opened(volume.backing / ".tdefs") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_session(described, mine)
        assert not umount._has_ended(described, mine)
        assert umount._has_ended(described, replace(mine, pid=1))
        # about to mount, not yet written down
        write_session(described, replace(mine, pid=1 << 22, clean=True))
        assert umount._has_ended(described, replace(mine, pid=1 << 22))
    assert umount._has_ended(described, mine)


def test_a_process_that_has_ended_and_was_not_waited_for_holds_nothing() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert is_running(process.pid)
        process.kill()
        assert wait_until(lambda: not is_running(process.pid), 10)
        assert Path(f"/proc/{process.pid}").exists()
    assert not is_running(process.pid)


@pytest.mark.slow
def test_mounting_and_unmounting_at_once_ends_in_one_or_the_other(volume: Volume, dice: Dice) -> None:
    volume.mount()
    (volume.mountpoint / "kept").write_bytes(b"kept" * 5000)
    for turn in range(dice.rounds(3)):
        commands = [mount(volume, volume.mountpoint), Command("umount", volume.mountpoint)]
        if dice.random(turn).random() < 0.5:
            commands.append(mount(volume, volume.mountpoint))
        codes = [command.wait() for command in commands]
        assert codes[1] in (Exit.OK, Exit.NOT_MOUNTED, Exit.MOUNT_BUSY), commands[1].said
        for command, code in zip(commands, codes, strict=True):
            assert code in (Exit.OK, Exit.VOLUME_IN_USE, Exit.MOUNT_FAILED) or command is commands[1], command.said
            if code == Exit.MOUNT_FAILED:
                assert "was unmounted before it served" in command.said
        assert len(mounts_below(volume.root)) == int(volume.is_mounted)
        if not volume.is_mounted:
            assert wait_until(lambda: volume.daemons == [], 20)
            volume.mount()
        assert (volume.mountpoint / "kept").read_bytes() == b"kept" * 5000
        served_by(volume, volume.mountpoint)


def test_of_many_inits_at_once_exactly_one_makes_the_volume(scratch: Workspace, dice: Dice) -> None:
    for _ in range(dice.rounds(2)):
        volume = scratch.volume("inits")
        commands = [
            Command("init", volume.backing, *volume.unlock, "--keystore", volume.keystore) for _ in range(4)
        ]
        codes = [command.wait() for command in commands]
        assert codes.count(Exit.OK) == 1, [command.said for command in commands]
        assert set(codes) <= {Exit.OK, Exit.VOLUME_EXISTS, Exit.VOLUME_IN_USE}, [one.said for one in commands]
        volume.mount()
        served_by(volume, volume.mountpoint)
        volume.umount()


def test_commands_that_need_no_mount_work_beside_one(volume: Volume) -> None:
    """Also while it comes and goes."""
    volume.mount()
    with (volume.mountpoint / "16385").open("wb") as file:
        file.write(b"content" * 10_000)
    volume.umount()
    for _ in range(2):
        coming = mount(volume, volume.mountpoint)
        assert "16385" in volume.tdefs("ls", volume.backing).stdout
        assert volume.cat("16385") == b"content" * 10_000
        volume.tdefs("verify", volume.backing, *volume.unlock)
        assert coming.wait() == Exit.OK, coming.said
        going = Command("umount", volume.mountpoint)
        assert volume.cat("16385") == b"content" * 10_000
        assert going.wait() == Exit.OK, going.said

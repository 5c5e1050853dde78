"""Stopped at the wrong time: signals, unmounting and suspension while files are being written lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from tdefs.errors import Exit
from tdefs.mounts.known import unmount
from tests.crash.conftest import Dice
from tests.crash.stops.writers import BUFFERED, DURABLE, MAPPED, check_written, stop, writing
from tests.support.children import needs_root
from tests.support.mounts import is_mounted
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import TDEFS, Volume

#: How long a daemon is suspended; in a campaign it is a minute.
SUSPENDED_SECONDS = 4
CAMPAIGN_SUSPENDED_SECONDS = 60


def data(volume: Volume) -> Path:
    """The directory for the files, which the mount point has only while it is mounted."""
    directory = volume.mountpoint / "data"
    directory.mkdir(exist_ok=True)
    return directory


def left_clean(volume: Volume) -> bool:
    """What the volume's record of its last session says."""
    record = json.loads((volume.backing / ".tdefs" / "session.json").read_text())
    return record["clean"] is True


def has_ended(daemon: int) -> bool:
    return wait_until(lambda: not is_alive(daemon), 60)


def suspended_seconds(dice: Dice) -> int:
    return SUSPENDED_SECONDS if dice.factor <= 1 else CAMPAIGN_SUSPENDED_SECONDS


# --- signals


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT]],
    ids=["one signal", "several signals"],
)
def test_what_was_written_when_a_signal_comes_is_there_after_the_daemon_has_gone(
    volume: Volume, dice: Dice, numbers: list[signal.Signals]
) -> None:
    written: dict[str, int] = {}
    for turn in range(dice.rounds(1)):
        random = dice.random(turn)
        volume.mount()
        (daemon,) = volume.daemons
        with writing(data(volume), random) as writers:
            time.sleep(random.uniform(0, 0.5))
            for number in numbers:
                send(daemon, number)
                time.sleep(random.uniform(0, 0.2))
            assert wait_until(lambda: "cannot end yet" in volume.log.read_text(), 30)
            assert is_alive(daemon), "the daemon ended under those who use its mount"
            written |= stop(writers)
        assert has_ended(daemon), volume.log_tail()
        assert not volume.is_mounted
        assert left_clean(volume)
        volume.mount()
        check_written(data(volume), written)
        volume.umount()
    assert [line for line in volume.complaints() if "cannot end yet" not in line] == []


def test_a_signal_at_any_moment_of_a_start_leaves_no_dead_mount_and_no_unclean_end(
    volume: Volume, dice: Dice
) -> None:
    """The first may come before anybody listens, the others while everything is being written out."""
    volume.mount()
    volume.umount()
    command = [str(TDEFS), "mount", "-f", str(volume.backing), str(volume.mountpoint), *volume.unlock]
    for turn in range(dice.rounds(4)):
        random = dice.random(turn)
        with volume.log.open("a") as log, subprocess.Popen(command, stderr=log, cwd="/") as daemon:
            try:
                if turn % 2:
                    time.sleep(random.uniform(0.1, 0.6))
                else:
                    deadline = time.monotonic() + 30
                    while not volume.is_mounted and time.monotonic() < deadline:
                        pass
                deadline = time.monotonic() + 30
                while daemon.poll() is None and time.monotonic() < deadline:
                    daemon.send_signal(random.choice([signal.SIGTERM, signal.SIGINT]))
                    time.sleep(random.uniform(0, 0.01))
                assert daemon.poll() is not None, "it does not end"
            finally:
                daemon.kill()
        assert not volume.is_mounted, "a dead mount is left"
        assert left_clean(volume)
    volume.mount()


def test_the_log_is_not_filled_by_a_daemon_that_cannot_end(volume: Volume) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    with (volume.mountpoint / "file").open("wb"):
        send(daemon, signal.SIGTERM)
        assert wait_until(lambda: "cannot end yet" in volume.log.read_text(), 10)
        time.sleep(4.5)  # it tries again every 2 s
        assert volume.log.read_text().count("cannot end yet") == 1
    assert has_ended(daemon)


# --- unmounting


def test_unmounting_while_files_are_written_is_refused_until_nobody_writes(volume: Volume, dice: Dice) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    with writing(data(volume), dice.random()) as writers:
        for _ in range(dice.rounds(3)):
            done = volume.tdefs("umount", volume.mountpoint, check=False)
            assert done.returncode == Exit.MOUNT_BUSY
            # the one that keeps its file open is seen for certain
            assert f"(process {writers[-1].process.pid}): {volume.mountpoint}" in done.stderr
            assert "HINT" in done.stderr
        written = stop(writers)
    volume.umount()
    assert not is_alive(daemon)
    assert left_clean(volume)
    volume.mount()
    check_written(data(volume), written)


def test_of_two_that_unmount_at_once_neither_fails_and_nothing_is_lost(volume: Volume, dice: Dice) -> None:
    for turn in range(dice.rounds(2)):
        volume.mount()
        (daemon,) = volume.daemons
        content = dice.random(turn).randbytes(1 << 20) * 30
        (volume.mountpoint / "file").write_bytes(content)
        command = [str(TDEFS), "umount", str(volume.mountpoint)]
        both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [process.communicate(timeout=60)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        # the second one may come when there is nothing to unmount any more
        assert codes in ([0, 0], [0, Exit.NOT_MOUNTED]), (codes, said)
        assert has_ended(daemon)
        volume.mount()
        assert (volume.mountpoint / "file").read_bytes() == content
        volume.umount()


def test_what_somebody_else_has_just_unmounted_is_no_error(volume: Volume) -> None:
    """Between looking for the mount and unmounting it."""
    volume.mount()
    volume.umount()
    unmount(volume.mountpoint)


def test_who_looks_at_a_mount_does_not_keep_it_from_being_unmounted(volume: Volume) -> None:
    """Each look, as of another umount, holds the mount for an instant, in which the kernel calls it busy."""
    volume.mount()
    (daemon,) = volume.daemons
    send(daemon, signal.SIGSTOP)
    go_on = Timer(0.3, send, (daemon, signal.SIGCONT))
    command = [sys.executable, "-c", "import os, sys; print(flush=True); os.statvfs(sys.argv[1])"]
    with subprocess.Popen([*command, volume.mountpoint], stdout=subprocess.PIPE, cwd="/") as looker:
        try:
            assert looker.stdout
            looker.stdout.readline()
            time.sleep(0.1)
            go_on.start()
            unmount(volume.mountpoint)
        finally:
            send(daemon, signal.SIGCONT)
    assert not volume.is_mounted
    assert has_ended(daemon)


@contextmanager
def detached_while_in_use(volume: Volume, command: list[str]) -> Iterator[int]:
    """A mount that was taken away lazily while a file in it is open; gives a descriptor of that file."""
    volume.mount()
    fd = os.open(volume.mountpoint / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"before")
        subprocess.run([*command, str(volume.mountpoint)], check=True)
        assert not volume.is_mounted
        yield fd
    finally:
        os.close(fd)


@needs_root
@pytest.mark.parametrize("command", [["umount", "-l"], ["fusermount3", "-uz"]], ids=lambda words: words[0])
def test_a_mount_that_was_detached_is_served_until_its_last_file_is_closed(
    volume: Volume, command: list[str]
) -> None:
    with detached_while_in_use(volume, command) as fd:
        (daemon,) = volume.daemons
        os.write(fd, b" and after")
        os.fsync(fd)
        done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
        assert done.returncode == Exit.VOLUME_IN_USE
        assert f"process {daemon} serves what was detached" in done.stderr
        assert "HINT:  it ends when the last file in it is closed" in done.stderr
        assert volume.tdefs("umount", volume.mountpoint, check=False).returncode == Exit.NOT_MOUNTED
        os.write(fd, b", unsynced")
    assert has_ended(daemon)
    assert left_clean(volume)
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"before and after, unsynced"


@needs_root
def test_a_signal_to_a_detached_daemon_leaves_alone_what_is_mounted_in_its_place(volume: Volume) -> None:
    with detached_while_in_use(volume, ["umount", "-l"]) as fd:
        (daemon,) = volume.daemons
        subprocess.run(["mount", "-t", "tmpfs", "none", str(volume.mountpoint)], check=True)
        try:
            send(daemon, signal.SIGTERM)
            assert wait_until(lambda: "was detached while in use" in volume.log.read_text(), 10)
            assert is_mounted(volume.mountpoint), "the daemon has unmounted another file system"
            assert is_alive(daemon)
        finally:
            subprocess.run(["umount", str(volume.mountpoint)], check=True)
        os.write(fd, b" and after")
    assert has_ended(daemon)
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"before and after"


# --- suspension


@pytest.mark.slow
def test_a_suspended_daemon_goes_on_as_if_nothing_had_been(volume: Volume, dice: Dice) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    with writing(data(volume), dice.random()) as writers:
        send(daemon, signal.SIGSTOP)
        try:
            time.sleep(suspended_seconds(dice))
        finally:
            send(daemon, signal.SIGCONT)
        before = time.monotonic()
        (data(volume) / "new").write_bytes(b"1")
        assert time.monotonic() - before < 10
        time.sleep(0.5)
        written = stop(writers)
    check_written(data(volume), written)
    assert volume.status()["failures"] == {}
    volume.umount()
    assert left_clean(volume)
    assert volume.complaints() == []
    volume.mount()
    check_written(data(volume), written)


def test_a_daemon_that_is_killed_while_suspended_loses_nothing_that_was_synced(volume: Volume, dice: Dice) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    with writing(data(volume), dice.random(), ways=(DURABLE, BUFFERED, MAPPED)) as writers:
        time.sleep(0.5)
        send(daemon, signal.SIGSTOP)
        time.sleep(0.5)
        send(daemon, signal.SIGKILL)
        assert has_ended(daemon)
        stop(writers, may_fail=True)
        written = writers[0].written
    assert not left_clean(volume)
    volume.mount()
    check_written(data(volume), written)
    for path in data(volume).iterdir():
        path.read_bytes()
    volume.umount()
    assert left_clean(volume)


# --- what a warning of the doctor rests on


def test_syncfs_of_a_mount_reaches_no_disk(volume: Volume) -> None:
    """Why ``recovery_init_sync_method = syncfs`` is a risk: the kernel passes it on to no FUSE file system."""
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"1" * 100_000)
    subprocess.run(["sync", "--file-system", str(volume.mountpoint)], check=True)
    requests = volume.status()["requests"]
    assert requests["write"] > 0
    assert not requests.keys() & {"fsync", "fsyncdir"}

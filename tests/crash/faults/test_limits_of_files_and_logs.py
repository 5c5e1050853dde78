"""Too many open files, too many failures, and what fails when a mount begins or ends."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.crash.faults.orders import Call, Faults, Order
from tests.crash.faults.places import verified
from tests.support.children import needs_root
from tests.support.processes import wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace


def limited(workspace: Workspace, soft: int, hard: int) -> Volume:
    """A mounted volume whose daemon was started with these limits of open files."""
    volume = workspace.volume("limited")
    volume.init()
    volume.program = ["prlimit", f"--nofile={soft}:{hard}", str(TDEFS)]
    volume.mount()
    (volume.mountpoint / "base" / "5").mkdir(parents=True)
    return volume


@contextmanager
def opened(directory: Path, numbers: range) -> Iterator[list[int]]:
    """New files that are open at a time."""
    with ExitStack() as stack:
        descriptors = []
        for number in numbers:
            fd = os.open(directory / f"{number}", os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, fd)
            os.write(fd, b"%d" % number)
            descriptors.append(fd)
        yield descriptors


def test_the_daemon_raises_its_own_limit_of_open_files(scratch: Workspace) -> None:
    volume = limited(scratch, 64, 4000)
    directory = volume.mountpoint / "base" / "5"
    with opened(directory, range(16384, 16384 + 900)) as descriptors:
        for number, fd in enumerate(descriptors, 16384):
            assert os.pread(fd, 10, 0) == b"%d" % number
    (daemon,) = volume.daemons
    limits = Path(f"/proc/{daemon}/limits").read_text()
    assert re.search(r"Max open files +4000 +4000 ", limits), limits
    volume.umount()


def test_idle_descriptors_are_given_up_before_a_client_is_refused(scratch: Workspace) -> None:
    volume = limited(scratch, 100, 100)
    directory = volume.mountpoint / "base" / "5"
    for number in range(16384, 16384 + 300):
        # closed again at once, and kept open by the daemon
        (directory / f"{number}").write_bytes(b"%d" % number)
    for number in range(16384, 16384 + 300):
        assert (directory / f"{number}").read_bytes() == b"%d" % number
    os.listdir(directory)
    (directory / "16384").rename(directory / "17000")
    assert volume.status()["failures"] == {}
    volume.umount()
    verified(volume)


def test_too_many_files_that_are_open_are_an_error_for_who_opens_one_more(scratch: Workspace) -> None:
    volume = limited(scratch, 100, 100)
    directory = volume.mountpoint / "base" / "5"
    # what the daemon itself has open (the backing directory, its own files, sockets) leaves room for some more
    with opened(directory, range(16384, 16384 + 60)) as descriptors:
        with pytest.raises(OSError, match="Too many open files"), opened(directory, range(17000, 17100)):
            pass
        for number, fd in enumerate(descriptors, 16384):
            os.pwrite(fd, b"still", 5)
            os.fsync(fd)
            assert os.pread(fd, 20, 0) == b"%dstill" % number
        # what the failed opening had made and closed again can go
        for number in range(17000, 17010):
            assert (directory / f"{number}").read_bytes() == b"%d" % number
    for number in range(16384, 16384 + 60):
        assert (directory / f"{number}").read_bytes() == b"%dstill" % number
    said = [
        line for line in volume.log.read_text().splitlines() if "EMFILE; HINT: raise the daemon's limit" in line
    ]
    assert len(said) == 1
    assert "create of base/5/17" in said[0]
    volume.umount()
    verified(volume)


def test_failures_are_all_counted_and_logged_a_few_times(scratch: Workspace) -> None:
    volume = scratch.volume("many-failures")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"), log_all=False)
    volume.mount()
    names = [f"note{number}" for number in range(150)]
    for name in names:
        (volume.mountpoint / name).write_text("short")
    began = time.monotonic()
    with faults.armed(Order(methods=("pwrite",), errno=errno.ENOSPC)):
        for name in names * 2:
            with pytest.raises(OSError, match="No space left"), (volume.mountpoint / name).open("r+b") as file:
                file.write(b"longer" * 1000)
                file.flush()
                os.fsync(file.fileno())
    periods = 1 + (time.monotonic() - began) // 10
    assert volume.status()["failures"]["write"] >= 2 * len(names)
    lines = [line for line in volume.log.read_text().splitlines() if "ERROR" in line]
    told = [
        line for line in lines if re.search(r"write of note\d+ failed: No space left .*ENOSPC; HINT: make", line)
    ]
    assert 10 <= len(told) <= 20 * periods  # twenty in ten seconds
    assert any("more failures are counted in tdefs status" in line for line in lines)
    volume.umount()


@pytest.mark.parametrize("label", ["inodes:root", "session:recover"])
def test_a_failure_before_the_mount_serves_is_told_and_leaves_nothing(scratch: Workspace, label: str) -> None:
    volume = scratch.volume("begin")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"))
    volume.mount()
    (volume.mountpoint / "PG_VERSION").write_text("15\n")
    volume.kill()
    with faults.armed(Order(labels=(label,))):
        words: list[str | Path] = ["mount", volume.backing, volume.mountpoint, *volume.unlock]
        done = volume.tdefs(*words, check=False)
        assert done.returncode == 50
        assert "Input/output error" in done.stderr
        assert not volume.is_mounted
        assert volume.daemons == []
    volume.mount()
    assert (volume.mountpoint / "PG_VERSION").read_text() == "15\n"
    volume.umount()


@needs_root
def test_failures_while_an_aborted_mount_is_closed_do_not_keep_the_daemon_from_ending(scratch: Workspace) -> None:
    volume = scratch.volume("end")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"))
    volume.mount()
    (volume.mountpoint / "base" / "5").mkdir(parents=True)
    (volume.mountpoint / "base" / "5" / "16384").write_bytes(b"x" * 100)
    subprocess.run(["sync", "-f", volume.mountpoint], check=True)
    directory = os.open(volume.mountpoint / "base", os.O_RDONLY)
    order = Order(labels=("close:directory", "inodes:close"))
    with faults.armed(order):
        number = faults.number
        daemons = volume.daemons
        subprocess.run(["umount", "-f", volume.mountpoint], check=False)
        os.close(directory)
        subprocess.run(["umount", "-l", volume.mountpoint], check=False)
        assert wait_until(lambda: not any(Path(f"/proc/{daemon}/fd").exists() for daemon in daemons), 30)
        failed = {call for call, _ in faults.failed(number)}
    assert failed == {Call("close", "close:directory"), Call("close", "inodes:close")}
    assert '"clean": false' in (volume.backing / ".tdefs" / "session.json").read_text()
    volume.mount()
    assert (volume.mountpoint / "base" / "5" / "16384").read_bytes() == b"x" * 100
    volume.umount()

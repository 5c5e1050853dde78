"""A daemon that has frozen is ended by its watchdog, no other is.

Covers tdefs/daemon/watchdog.py and tdefs/daemon/watched.py.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.conftest import Dice
from tests.crash.faults.loop_disks import Ext4, run
from tests.crash.stops.writers import check_written, stop, writing
from tests.support.children import needs_root
from tests.support.mounts import CONNECTIONS, LET_GO_OF_OTHERS, fusectl
from tests.support.processes import arguments, is_alive, processes_in, send, wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

#: How long a daemon may be silent.
SECONDS = 2
#: What the watchdog, and a busy machine, may need beside that.
MORE = 10
GONE = {errno.ECONNABORTED, errno.ENOTCONN, errno.EIO}

# Each waits in the kernel for the daemon: the answer to the first comes from no cache, the others have written.
_USERS = {
    "read": "import os, sys; os.pread(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), 1 << 20, 0)",
    "create": "import sys; open(sys.argv[1] + '.new', 'w')",
    "fsync": "import os, sys; fd = os.open(sys.argv[1] + '.w', os.O_RDWR); print(flush=True); "
    "sys.stdin.read(1); os.write(fd, b'x' * 9000); os.fsync(fd)",
    "map": "import mmap, os, sys; fd = os.open(sys.argv[1] + '.m', os.O_RDWR); view = mmap.mmap(fd, 8192); "
    "print(flush=True); sys.stdin.read(1); view[:] = b'm' * 8192; view.flush()",
}


@pytest.fixture(autouse=True)
def connections() -> Iterator[None]:
    with fusectl():
        yield


@pytest.fixture
def watched(volume: Volume) -> Volume:
    volume.mount("--watchdog", str(SECONDS))
    return volume


def watchdogs(volume: Volume) -> list[int]:
    return [
        pid
        for pid in processes_in(volume.root)
        if any(word.endswith("watchdog.py") for word in arguments(pid)) and is_alive(pid)
    ]


def freeze(volume: Volume) -> int:
    (daemon,) = volume.daemons
    send(daemon, signal.SIGSTOP)
    return daemon


def is_waiting(process: subprocess.Popen[str]) -> bool:
    """Whether it is in the kernel, waiting for an answer from a FUSE daemon."""
    place = Path(f"/proc/{process.pid}/wchan").read_text()
    return place.startswith(("request_wait_answer", "fuse_", "folio_wait", "wait_on_page"))


def test_who_waits_for_a_frozen_daemon_gets_an_error_in_time_and_the_volume_can_be_mounted_again(
    watched: Volume,
) -> None:
    file = watched.mountpoint / "file"
    for path in (file, *(file.with_suffix(f".{kind}") for kind in "wm")):
        path.write_bytes(b"synced" * 20000)
        run("sync", path)
    users = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, str(file)],
            text=True,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, script in _USERS.items()
        if name in ("fsync", "map")
    }
    for process in users.values():
        assert process.stdout
        process.stdout.readline()
    (watchdog,) = watchdogs(watched)
    daemon = freeze(watched)
    begun = time.monotonic()
    for name in ("read", "create"):
        users[name] = subprocess.Popen(
            [sys.executable, "-c", _USERS[name], str(file)], text=True, cwd="/", stderr=subprocess.PIPE
        )
    for name in ("fsync", "map"):
        process = users[name]
        assert process.stdin
        process.stdin.write("x")
        process.stdin.flush()
    try:
        assert wait_until(lambda: all(map(is_waiting, users.values())), SECONDS), "nobody waits for the daemon"
        for name, process in users.items():
            _, said = process.communicate(timeout=SECONDS + MORE)
            assert process.returncode == 1, name
            assert any(f"[Errno {number}]" in said for number in GONE), said
        assert time.monotonic() - begun > SECONDS / 2
        assert wait_until(lambda: not is_alive(daemon) and not is_alive(watchdog), MORE)
    finally:
        send(daemon, signal.SIGKILL)
        for process in users.values():
            process.kill()
            process.communicate()
    assert f"(process {daemon})" in watched.log.read_text()
    assert f"has not answered for {SECONDS} s" in watched.complaints()[-1]
    watched.mount("--watchdog", str(SECONDS))
    assert file.read_bytes() == b"synced" * 20000
    watched.umount()


def test_a_daemon_that_is_merely_busy_is_left_alone(watched: Volume, dice: Dice) -> None:
    (daemon,), (watchdog,) = watched.daemons, watchdogs(watched)
    directory = watched.mountpoint / "data"
    directory.mkdir()
    with writing(directory, dice.random()) as writers:
        time.sleep(SECONDS * 2)
        written = stop(writers)
    assert is_alive(daemon)
    assert watched.status()["watchdog"] == SECONDS
    check_written(directory, written)
    watched.umount()
    assert not is_alive(watchdog)
    assert watched.complaints() == []


def test_a_daemon_that_a_slow_disk_holds_up_is_left_alone(scratch: Workspace) -> None:
    volume = scratch.volume("slow-disk")
    disk = Ext4(volume.root, 32)
    with disk.mounted() as place:
        volume.backing.rmdir()
        volume.backing = place / "backing"
        volume.backing.mkdir()
        volume.init()
        volume.mount("--watchdog", str(SECONDS))
        (daemon,) = volume.daemons
        # a disk that takes no more writes: this one waits in the daemon's event loop
        run("fsfreeze", "--freeze", place)
        script = "import sys; open(sys.argv[1], 'w').write('x')"
        command = [sys.executable, "-c", script, str(volume.mountpoint / "file")]
        with subprocess.Popen(command, cwd="/") as writer:
            try:
                time.sleep(SECONDS * 2.5)
                assert Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[0] == "D"
                assert writer.poll() is None
            finally:
                run("fsfreeze", "--unfreeze", place)
            assert writer.wait(30) == 0
        assert (volume.mountpoint / "file").read_text() == "x"
        assert is_alive(daemon)
        volume.umount()
    assert volume.complaints() == []


def test_a_suspended_machine_is_not_a_frozen_daemon(watched: Volume) -> None:
    """Both were stopped, and the watchdog, which is first to go on, does not take its own absence for silence."""
    (watchdog,) = watchdogs(watched)
    daemon = freeze(watched)
    time.sleep(SECONDS / 3)  # by now it waits for an answer that does not come
    send(watchdog, signal.SIGSTOP)
    time.sleep(SECONDS * 2)
    send(watchdog, signal.SIGCONT)
    time.sleep(SECONDS / 4)
    send(daemon, signal.SIGCONT)
    time.sleep(SECONDS)
    assert is_alive(daemon)
    (watched.mountpoint / "file").write_text("served")
    watched.umount()
    assert watched.complaints() == []


@pytest.mark.parametrize("foreground", [False, True], ids=["background", "foreground"])
def test_the_watchdog_ends_with_the_mount_and_with_the_daemon(volume: Volume, foreground: bool) -> None:
    command = [*volume.program, "mount", "-f", str(volume.backing), str(volume.mountpoint), *volume.unlock]
    for how in ("umount", "kill"):
        daemon = None
        if foreground:
            with volume.log.open("a") as log:
                daemon = subprocess.Popen([*command, "--watchdog", "60"], stdout=log, stderr=log, cwd="/")
            assert wait_until(lambda: volume.is_mounted and bool(watchdogs(volume)), 30)
        else:
            volume.mount("--watchdog", "60")
        assert watchdogs(volume)
        if how == "umount":
            volume.umount()
        else:
            volume.kill()
        assert wait_until(lambda: not watchdogs(volume), 5), how
        if daemon:
            daemon.wait(10)


def test_a_watchdog_that_was_killed_is_missed_and_replaced(watched: Volume) -> None:
    (watchdog,) = watchdogs(watched)
    send(watchdog, signal.SIGKILL)
    assert wait_until(lambda: watched.status()["watchdog"] is None, 5)
    assert wait_until(lambda: watchdogs(watched) not in ([], [watchdog]), 20)
    assert wait_until(lambda: watched.status()["watchdog"] == SECONDS, 5)
    assert "the watchdog has ended" in watched.complaints()[-1]


def test_root_mounts_the_file_system_that_the_watchdog_needs(volume: Volume) -> None:
    script = f"""
        (set -- {volume.root}; {LET_GO_OF_OTHERS}) || true
        set -e
        while umount {CONNECTIONS} 2>/dev/null; do :; done
        "$@"
        mountpoint -q {CONNECTIONS}
        "$1" umount {volume.mountpoint}
    """
    mount = [*volume.program, "mount", volume.backing, volume.mountpoint, *volume.unlock, "--watchdog", "9"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, mount)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")

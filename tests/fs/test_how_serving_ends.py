"""How serving ends: it is a clean end if everything that was written had been passed on, and no other is."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.children import needs_root
from tests.support.mounts import detach, is_mounted
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import TDEFS, Volume

BREAKING = Path(__file__).with_name("breaking_tdefs.py")
CONTENT = os.urandom(300_000)


def left_clean(volume: Volume) -> bool:
    record = json.loads((volume.backing / ".tdefs" / "session.json").read_text())
    return record["clean"] is True


@contextmanager
def foreground(volume: Volume) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, whose exit code can be seen, on a mount with one file that was synced."""
    command = [*volume.program, "mount", "-f", str(volume.backing), str(volume.mountpoint), *volume.unlock]
    with volume.log.open("a") as log, subprocess.Popen(command, stderr=log, cwd="/") as daemon:
        try:
            assert wait_until(lambda: volume.is_mounted or daemon.poll() is not None, 30)
            with (volume.mountpoint / "synced").open("wb") as file:
                file.write(CONTENT)
                file.flush()
                os.fsync(file.fileno())
            yield daemon
        finally:
            if volume.is_mounted:
                detach(volume.mountpoint)
            daemon.kill()


def run(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=60)


def by_tdefs(volume: Volume, daemon: int) -> None:
    volume.tdefs("umount", volume.mountpoint)


def by_umount(volume: Volume, daemon: int) -> None:
    run(*(["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]), volume.mountpoint)


def by_fusermount(volume: Volume, daemon: int) -> None:
    run("fusermount3", "-u", volume.mountpoint)


def by_signal(volume: Volume, daemon: int) -> None:
    send(daemon, signal.SIGTERM)


def by_detaching_and_closing(volume: Volume, daemon: int) -> None:
    with (volume.mountpoint / "synced").open("r+b") as file:
        detach(volume.mountpoint)
        file.write(CONTENT[:1000])


@pytest.mark.parametrize("end", [by_tdefs, by_umount, by_fusermount, by_signal, by_detaching_and_closing])
def test_an_orderly_end_is_clean(volume: Volume, end: Callable[[Volume, int], None]) -> None:
    with foreground(volume) as daemon:
        (volume.mountpoint / "cached").write_bytes(CONTENT)
        end(volume, daemon.pid)
        assert daemon.wait(30) == Exit.OK
    assert left_clean(volume)
    volume.mount()
    assert (volume.mountpoint / "cached").read_bytes() == CONTENT
    assert (volume.mountpoint / "synced").read_bytes() == CONTENT


@needs_root
def test_an_end_right_after_many_files_were_closed_is_clean(volume: Volume) -> None:
    """The kernel drops the last releases unsent, so the daemon sees files that are open still."""
    for _ in range(3):
        with foreground(volume) as daemon:
            names = [volume.mountpoint / f"file{number}" for number in range(300)]
            files = [name.open("wb") for name in names]
            for file in files:
                file.write(b"content")
            for file in files:
                file.close()
            assert ctypes.CDLL(None).umount2(os.fsencode(volume.mountpoint), 0) == 0
            assert daemon.wait(30) == Exit.OK
        assert left_clean(volume)


def abort(device: int) -> None:
    """Aborts a connection, as an administrator or a watchdog does."""
    place = "/sys/fs/fuse/connections"
    script = f"mountpoint -q {place} || mount -t fusectl none {place}; echo 1 > {place}/{os.minor(device)}/abort"
    run("unshare", "--mount", "sh", "-ec", script)


def by_abort(volume: Volume, daemon: int) -> None:
    abort(volume.mountpoint.stat().st_dev)


def by_abort_of_what_was_detached(volume: Volume, daemon: int) -> None:
    device = volume.mountpoint.stat().st_dev
    detach(volume.mountpoint)
    abort(device)


def by_force(volume: Volume, daemon: int) -> None:
    subprocess.run(["umount", "-f", volume.mountpoint], capture_output=True, check=False)  # it is busy


def by_force_and_detaching(volume: Volume, daemon: int) -> None:
    run("umount", "-f", "-l", volume.mountpoint)


def by_sigkill(volume: Volume, daemon: int) -> None:
    send(daemon, signal.SIGKILL)


@needs_root
@pytest.mark.parametrize(
    "end", [by_abort, by_abort_of_what_was_detached, by_force, by_force_and_detaching, by_sigkill]
)
def test_an_end_that_loses_what_was_written_is_not_clean(
    volume: Volume, end: Callable[[Volume, int], None]
) -> None:
    with foreground(volume) as daemon:
        file = (volume.mountpoint / "cached").open("wb", buffering=0)
        try:
            file.write(CONTENT)
            end(volume, daemon.pid)
            code = daemon.wait(30)
        finally:
            with pytest.raises(OSError, match=r"not connected|abort"):
                os.fsync(file.fileno())
            file.close()
    assert not left_clean(volume)
    if end is not by_sigkill:
        assert code == Exit.MOUNT_LOST
        assert "was lost" in volume.log.read_text()
    # as the disk may look if it forgets what was not synced; after a clean end this would be damage
    (volume.data / "cached").write_bytes(bytes(2 * 8192))
    volume.mount()
    assert "cached: emptied: its header was lost in a crash" in volume.log.read_text()
    assert (volume.mountpoint / "cached").read_bytes() == b""
    assert (volume.mountpoint / "synced").read_bytes() == CONTENT
    volume.umount()
    assert left_clean(volume)


@needs_root
def test_an_abort_of_a_mount_that_nobody_uses_is_told_and_the_dead_mount_stays(volume: Volume) -> None:
    """What starts there must find an error, and not the plain directory below."""
    volume.mount()
    (daemon,) = volume.daemons
    (volume.mountpoint / "file").write_bytes(CONTENT)
    abort(volume.mountpoint.stat().st_dev)
    assert wait_until(lambda: not is_alive(daemon), 30)
    assert is_mounted(volume.mountpoint)
    with pytest.raises(OSError, match="not connected"):
        (volume.mountpoint / "file").read_bytes()
    assert not left_clean(volume)
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == CONTENT


@needs_root
def test_a_loop_that_fails_ends_the_mount_and_is_told(volume: Volume) -> None:
    volume.program = [sys.executable, str(BREAKING)]
    with foreground(volume) as daemon:
        with pytest.raises(OSError, match=r"not connected|abort"):
            (volume.mountpoint / "broken-mount").stat()
        assert daemon.wait(30) == Exit.MOUNT_LOST
    assert not left_clean(volume)
    assert "the mount ended unexpectedly" in volume.log.read_text()


# --- issue 11, A5: what goes wrong with the manifest keeps no session from ending right


def break_at(volume: Volume, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Has one thing fail with an error that the program does not expect, once a manifest is there."""
    volume.mount()
    (volume.mountpoint / "file").write_bytes(CONTENT)
    volume.umount()
    volume.program = [sys.executable, str(BREAKING)]
    monkeypatch.setenv("TDEFS_BREAK_AT", what)


def still_holds(volume: Volume) -> None:
    """The next mount finds all as it was, and nothing that it must tell of."""
    volume.program = [str(TDEFS)]
    said = len(volume.complaints())
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == CONTENT
    volume.umount()
    assert left_clean(volume)
    assert volume.complaints()[said:] == []


def test_a_manifest_that_cannot_be_taken_is_told_and_the_end_is_clean(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(volume, monkeypatch, "manifest")
    with foreground(volume) as daemon:
        volume.tdefs("umount", volume.mountpoint)
        assert daemon.wait(30) == Exit.OK
    assert left_clean(volume)
    assert "the manifest could not be written" in volume.log.read_text()
    still_holds(volume)


@pytest.mark.parametrize("label", ["journal:write", "journal:sync"])
def test_a_journal_that_cannot_be_written_keeps_what_is_bound_as_it_is_and_the_end_is_clean(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    break_at(volume, monkeypatch, label)
    volume.mount()
    for change in (
        lambda path: os.truncate(path, 5),
        Path.unlink,
        lambda path: path.rename(path.with_name("new")),
    ):
        with pytest.raises(OSError) as caught:
            change(volume.mountpoint / "file")
        assert caught.value.errno == EIO
    volume.umount()
    assert left_clean(volume)
    assert "unexpected error in setattr" in volume.log.read_text()
    still_holds(volume)


def test_a_journal_that_cannot_be_begun_leaves_nothing_mounted_and_a_clean_end(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(volume, monkeypatch, "journal:begin")
    done = volume.tdefs(
        "mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log, check=False
    )
    assert done.returncode not in (Exit.OK, Exit.USAGE)
    assert not volume.is_mounted
    assert left_clean(volume)
    assert "cannot, since the test says so" in volume.log.read_text()
    still_holds(volume)


def test_a_mount_that_fails_leaves_what_was_added_to_be_told(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_bytes(CONTENT)
    volume.umount()
    (volume.data / "added").write_bytes((volume.data / "file").read_bytes())
    words = (*volume.unlock, "-o", "nonsense")
    assert (
        volume.tdefs("mount", volume.backing, volume.mountpoint, *words, check=False).returncode
        == Exit.MOUNT_FAILED
    )
    volume.mount()
    with pytest.raises(OSError) as caught:
        (volume.mountpoint / "added").read_bytes()
    assert caught.value.errno == EIO
    assert "added: not as the last unmount left it: added" in volume.log.read_text()


def test_a_history_that_was_exchanged_is_told_and_the_end_is_clean(volume: Volume) -> None:
    history = volume.keystore.with_name(f"{volume.keystore.name}.history")
    elsewhere = volume.root / "elsewhere"
    volume.mount()
    (volume.mountpoint / "file").write_bytes(CONTENT)
    history.rename(elsewhere)
    history.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    volume.umount()
    assert left_clean(volume)
    assert elsewhere.read_bytes() == before
    told = "\n".join(volume.complaints())
    assert "the manifest's counter could not be written" in told
    assert "it is a symbolic link" in told
    assert "Traceback" not in told
    elsewhere.replace(history)
    still_holds(volume)

"""What ``tdefs status`` tells of a mount. Covers tdefs/cli/status.py and tdefs/daemon/report.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.cli import status
from tdefs.cli.common import place
from tdefs.daemon.status import DaemonStatus, KeyStatus
from tdefs.errors import Exit, TdefsError
from tdefs.fuse.measured import Latency
from tdefs.mounts.known import Mount
from tdefs.volume.lock import VolumeLock
from tests.support.daemon_status import daemon_status
from tests.support.offline_volumes import Command, SmallVolume

MOUNTPOINT = Path("/mnt/tdefs-test")


def answer(small: SmallVolume) -> DaemonStatus:
    """Return what the daemon of a mount of this volume answers."""
    return daemon_status(
        mountpoint=str(MOUNTPOINT),
        backing=str(small.volume.backing),
        volume_id=small.volume.volume_id.hex(),
        data_keys=tuple(KeyStatus(key.name, key.round, key.algorithm, "active") for key in small.ring),
        destroyed_rounds=(("dk_3", 1),),
        requests={"open": 10, "read": 20},
        failures={"open": 2},
        bytes={"read": 8192},
        latency={"read": Latency(150, (10, 0, 5, 5))},
    )


@pytest.fixture
def mounted(small: SmallVolume, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallVolume]:
    """A volume that looks as if it were mounted, with a daemon that answers."""
    small.encrypt("base/5/16384", b"x")
    small.encrypt("base/5/16385", b"x")
    small.encrypt("wiped", b"x")
    small.damage("wiped", 100)
    small.plain("empty", b"")
    mount = Mount(MOUNTPOINT, small.volume.backing, "0:42")
    monkeypatch.setattr(place, "find_mount", lambda mountpoint: mount)
    monkeypatch.setattr(status, "ask_status", lambda volume: answer(small))
    lock = VolumeLock(small.volume)
    lock.acquire()
    yield small
    lock.release()


def test_json_has_stable_keys(mounted: SmallVolume, command: Command) -> None:
    found = command.json(status, MOUNTPOINT)
    since = found.pop("since")
    assert since.startswith("2023-11-1")
    assert found == {
        "mountpoint": str(MOUNTPOINT),
        "mounts_inside": [],
        "backing": str(mounted.volume.backing),
        "volume_id": mounted.volume.volume_id.hex(),
        "daemon_answers": True,
        "pid": 4321,
        "keystore": "/etc/tdefs/keystore",
        "keystore_revision": 7,
        "policy": None,
        "log_file": "/var/log/tdefs",
        "memory_locked": True,
        "watchdog": 60,
        "read_only": False,
        "page_cipher": "compiled",
        "known_inodes": 7,
        "open_handles": 3,
        "data_keys": [
            {"name": "dk_1", "round": 1, "algorithm": "aes-256-xts", "state": "active", "files": 2},
            {"name": "dk_2", "round": 1, "algorithm": "aes-256-xts", "state": "active", "files": 0},
        ],
        "files": {"encrypted": 2, "plain": 0, "empty": 1, "damaged": 1, "unreadable": 0},
        "requests": {"open": 10, "read": 20},
        "failures": {"open": 2},
        "tampering": None,
        "policy_digest": "ab" * 32,
        "reserve_spared": True,
        "bytes": {"read": 8192},
        "latency": {"read": {"total_us": 150, "buckets": [10, 0, 5, 5]}},
    }


def test_text_shows_keys_counts_and_failures(mounted: SmallVolume, command: Command) -> None:
    code, output = command.run(status, MOUNTPOINT)
    rows = [line.split() for line in output.splitlines()]
    assert code == 0
    for row in (
        ["pid", "4321"],
        ["memory", "locked", "yes"],
        ["watchdog", "60"],
        ["policy", "digest", "ab" * 8],
        ["dk_1", "1", "aes-256-xts", "active", "2"],
        ["damaged", "1"],
        ["open", "10", "2", "-", "-", "-", "-"],
        ["read", "20", "0", "8192", "8", "1", "8"],
    ):
        assert row in rows


def test_files_of_a_destroyed_key_count_as_unreadable(
    mounted: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.encrypt("base/5/16386", b"x", key="dk_2")
    said = answer(mounted)
    kept = tuple(key for key in said.data_keys if key.name == "dk_1")
    said = replace(said, data_keys=kept, destroyed_rounds=(("dk_2", 1),))
    monkeypatch.setattr(status, "ask_status", lambda volume: said)
    found = command.json(status, MOUNTPOINT)
    assert found["files"] == {"encrypted": 2, "plain": 0, "empty": 1, "damaged": 1, "unreadable": 1}
    lost = {"name": "dk_2", "round": 1, "algorithm": "aes-256-xts", "state": "destroyed", "files": 1}
    assert lost in found["data_keys"]
    assert ["unreadable", "1"] in [line.split() for line in command.run(status, MOUNTPOINT)[1].splitlines()]


def test_daemon_that_does_not_answer_leaves_the_rest(
    mounted: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "ask_status", lambda volume: None)
    mounted.crash()
    found = command.json(status, MOUNTPOINT)
    assert found["daemon_answers"] is False
    assert (found["pid"], found["since"], found["requests"]) == (4242, None, {})
    assert found["files"]["encrypted"] == 2
    (key,) = found["data_keys"]
    assert key == {"name": "dk_1", "round": 1, "algorithm": "aes-256-xts", "state": None, "files": 2}
    assert command.run(status, MOUNTPOINT)[1].startswith("the daemon does not answer")


def test_dead_mount_is_not_mounted(
    mounted: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "is_dead", lambda mountpoint: True)
    with pytest.raises(TdefsError) as caught:
        command.run(status, MOUNTPOINT)
    assert caught.value.exit_code == Exit.NOT_MOUNTED
    assert "its daemon is gone" in caught.value.message
    assert "tdefs mount" in caught.value.hint


def test_mount_whose_daemon_holds_no_lock_is_dead(
    mounted: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "is_in_use", lambda volume: False)
    with pytest.raises(TdefsError) as caught:
        command.run(status, MOUNTPOINT)
    assert caught.value.exit_code == Exit.NOT_MOUNTED


def test_directory_without_a_mount_is_not_mounted(command: Command, tmp_path: Path) -> None:
    with pytest.raises(TdefsError) as caught:
        command.run(status, tmp_path)
    assert caught.value.exit_code == Exit.NOT_MOUNTED

"""Started with standard descriptors closed: what keeps others away holds, and every command ends as it would."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tdefs.cli.common.background import run_in_background
from tdefs.errors import Exit, TdefsError
from tdefs.volume.description import read_volume
from tdefs.volume.lock import VolumeLock, is_in_use
from tests.support.volume import LIMIT, TDEFS, Volume

COMBINATIONS = [closed for count in (1, 2, 3) for closed in itertools.combinations(range(3), count)]


def run(closed: tuple[int, ...], *words: str | Path, program: Path = TDEFS) -> tuple[int, str]:
    """Runs a command with descriptors closed; returns its exit code and what it said on those that are open."""
    closing = " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" "$@" {closing}', str(program), *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("closed", COMBINATIONS, ids=str)
def test_a_volume_is_mounted_once_whatever_descriptors_are_closed(volume: Volume, closed: tuple[int, ...]) -> None:
    other = volume.root / "other"
    other.mkdir()
    place = (volume.backing, volume.mountpoint)
    assert run(closed, "mount", *place, *volume.unlock, "--log-file", volume.log) == (Exit.OK, "")
    (daemon,) = volume.daemons
    code, said = run(closed, "mount", volume.backing, other, *volume.unlock)
    assert code == Exit.VOLUME_IN_USE
    assert "Traceback" not in said
    assert volume.daemons == [daemon]
    lock = (volume.backing / ".tdefs").stat()
    held = [Path(f"/proc/{daemon}/fd/{name}") for name in os.listdir(f"/proc/{daemon}/fd")]
    held = [path for path in held if os.path.samestat(path.stat(), lock)]
    locking = [path for path in held if "FLOCK" in (path.parent.with_name("fdinfo") / path.name).read_text()]
    (descriptor,) = [path.name for path in locking]
    assert int(descriptor) > 2
    (volume.mountpoint / "file").write_bytes(b"1")
    assert run(closed, "umount", volume.mountpoint) == (Exit.OK, "")
    assert json.loads((volume.backing / ".tdefs" / "session.json").read_text())["clean"] is True
    assert volume.complaints() == []


def test_every_command_ends_as_with_open_descriptors(mounted: Path, volume: Volume) -> None:
    (mounted / "file").write_bytes(b"content")
    commands: list[list[str | Path]] = [
        ["--help"],
        ["status", mounted],
        ["ls", volume.backing],
        ["cat", "file", "--volume", volume.backing, *volume.unlock],
        ["cat", "missing", "--volume", volume.backing, *volume.unlock],
        ["verify", volume.backing, *volume.unlock],
        ["key", "list", "--volume", volume.backing, *volume.unlock],
        ["protector", "list", "--volume", volume.backing, *volume.unlock],
        ["policy", "explain", volume.backing, "base/5/1259"],
        ["doctor", mounted],
        ["mount", volume.root / "missing", mounted],
        ["no-such-command"],
    ]
    for words, some in zip(commands, itertools.cycle(COMBINATIONS[:-1])):
        expected, _ = run((), *words)
        for closed in (some, COMBINATIONS[-1]):
            code, said = run(closed, *words)
            assert (words, closed, code) == (words, closed, expected)
            assert "Traceback" not in said


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)], ids=str)
def test_a_change_is_made_though_nobody_can_be_told(volume: Volume, closed: tuple[int, ...]) -> None:
    code, _ = run(closed, "key", "create", "dk_2", "--volume", volume.backing, *volume.unlock)
    assert code == Exit.OK
    assert "dk_2" in volume.tdefs("key", "list", "--volume", volume.backing).stdout
    second = volume.root / "second"
    code, _ = run(closed, "init", second, *volume.unlock)
    assert code == Exit.OK
    assert read_volume(second).backing == second


def test_a_daemon_whose_lock_was_taken_away_does_not_begin(volume: Volume) -> None:
    """Whatever has put another file in the descriptor's place, nothing would keep a second daemon away."""
    place = read_volume(volume.backing)
    lock = VolumeLock(place)
    lock.acquire()

    def lose() -> None:
        os.dup2(os.open(os.devnull, os.O_RDWR), lock.descriptor)
        lock.verify()

    try:
        worked = volume.root / "worked"
        with pytest.raises(TdefsError) as caught:
            run_in_background(lambda _ready: worked.touch(), keep=lock.descriptor, check=lose)
        assert caught.value.exit_code == Exit.VOLUME_IN_USE
        assert not worked.exists()
        lock.verify()  # this process has it still
    finally:
        lock.release()
    assert not is_in_use(place)


def test_a_lock_whose_directory_was_replaced_is_none(volume: Volume) -> None:
    lock = VolumeLock(read_volume(volume.backing))
    lock.acquire()
    try:
        path = volume.backing / ".tdefs"
        path.rename(volume.backing / "elsewhere")
        path.mkdir()
        with pytest.raises(TdefsError) as caught:
            lock.verify()
        assert caught.value.exit_code == Exit.VOLUME_IN_USE
    finally:
        lock.release()


@pytest.mark.parametrize("closed", COMBINATIONS, ids=str)
def test_the_helper_of_mount_ends_as_with_open_descriptors(volume: Volume, closed: tuple[int, ...]) -> None:
    helper = volume.root / "helper"
    helper.write_text(f"#!{sys.executable}\nfrom tdefs.cli.mount_helper import run\nrun()\n")
    helper.chmod(0o755)
    code, said = run(closed, volume.root / "missing", volume.mountpoint, program=helper)
    assert code == run((), volume.root / "missing", volume.mountpoint, program=helper)[0] != 0
    assert "Traceback" not in said

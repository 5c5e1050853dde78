"""Damage to tdefs's own files, such as the description and the keystore: told, with what to do, or survived."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tdefs.volume.description import read_volume
from tdefs.volume.session_record import read_session
from tests.crash.conftest import Dice
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CONTENT = b"what the volume holds" * 1000
#: Exit codes that say that the volume's description or its keystore is not what it was (docs/EXIT-CODES.md).
TOLD = {10, 13, 19, 20, 21, 22, 23, 24, 25}


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _stretch(random: Random, data: bytes) -> bytes:
    at = random.randrange(len(data))
    size = random.randint(1, 100)
    return data[:at] + random.randbytes(size) + data[at + size :]


def _digit(random: Random, data: bytes) -> bytes:
    """One character for another of its kind, so that it stays text."""
    places = [at for at, byte in enumerate(data) if chr(byte).isalnum()]
    at = random.choice(places)
    return data[:at] + random.choice(b"0123456789abcdef").to_bytes(1, "little") + data[at + 1 :]


DAMAGES: dict[str, Callable[[Random, bytes], bytes]] = {
    "flipped bits": _flip,
    "a stretch": _stretch,
    "another digit": _digit,
    "truncated": lambda random, data: data[: random.randrange(len(data))],
    "longer": lambda random, data: data + random.randbytes(random.randint(1, 9000)),
    "zeros": lambda _, data: bytes(len(data)),
    "nested": lambda *_: b"[" * 60_000,
    "random": lambda random, data: random.randbytes(len(data)),
}


@pytest.fixture
def used(scratch: Workspace) -> Volume:
    """A volume with its keystore inside, where ``tdefs init`` puts it by itself, and one file."""
    volume = scratch.volume()
    volume.keystore = volume.backing / ".tdefs/keystore"
    volume.init()
    volume.mount()
    (volume.mountpoint / "file").write_bytes(CONTENT)
    volume.umount()
    return volume


@pytest.mark.slow
def test_damaged_private_files_are_told_or_survived(used: Volume, dice: Dice) -> None:
    """What is told has an exit code, a reason and a hint. What is not told did no harm: the file is read back."""
    private = used.backing / ".tdefs"
    keep = used.root / "kept"
    shutil.copytree(private, keep)
    told = survived = 0
    for number in range(dice.rounds(6)):
        random = dice.random(number)
        victim = random.choice(["volume.json", "keystore", "session.json"])
        name = random.choice(sorted(DAMAGES))
        path = private / victim
        data = path.read_bytes()
        removed = random.random() < 0.15
        if removed:
            path.unlink()
        else:
            path.write_bytes(DAMAGES[name](random, data or b"x"))
        what = f"{victim}: {'removed' if removed else name}"
        commands: tuple[tuple[str | Path, ...], ...] = (
            ("verify", used.backing, *used.unlock),
            ("mount", used.backing, used.mountpoint, *used.unlock, "--log-file", used.log),
        )
        for command in commands:
            done = used.tdefs(*command, check=False)
            assert "Traceback" not in done.stderr + done.stdout, f"{what}\n{done.stderr}"
            if done.returncode == 0:
                survived += 1
                continue
            assert done.returncode in TOLD, f"{what}: exit code {done.returncode}\n{done.stderr}"
            assert "HINT:" in done.stderr, f"{what}\n{done.stderr}"
            told += 1
        if used.is_mounted:
            assert (used.mountpoint / "file").read_bytes() == CONTENT, what
            used.umount()
        shutil.rmtree(private)
        shutil.copytree(keep, private)
        for one in private.iterdir():
            one.chmod(0o600)
    print(f"told {told} times, survived {survived} times")
    assert told + survived == 2 * dice.rounds(6)


@pytest.mark.parametrize("name", ["volume.json", "keystore", "session.json", "control"])
def test_directory_in_the_place_of_a_private_file_is_told(used: Volume, name: str) -> None:
    path = used.backing / ".tdefs" / name
    path.unlink(missing_ok=True)
    path.mkdir()
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("verify", used.backing, *used.unlock),
        ("mount", used.backing, used.mountpoint, *used.unlock, "--log-file", used.log),
    )
    for command in commands:
        done = used.tdefs(*command, check=False)
        assert "Traceback" not in done.stderr + done.stdout
        if done.returncode:
            assert str(path) in done.stderr or "HINT" in done.stderr
    assert used.is_mounted == (done.returncode == 0)
    if used.is_mounted:
        assert (used.mountpoint / "file").read_bytes() == CONTENT
        used.umount()
    assert "Traceback" not in used.log.read_text()


def test_private_directory_of_another_volume_does_not_open_this_one(scratch: Workspace, used: Volume) -> None:
    other = scratch.volume("other")
    other.keystore = other.backing / ".tdefs/keystore"
    other.init()
    shutil.copyfile(other.backing / ".tdefs/volume.json", used.backing / ".tdefs/volume.json")
    for keystore in (None, other.keystore):
        if keystore is not None:
            shutil.copyfile(keystore, used.backing / ".tdefs/keystore")
        done = used.tdefs("verify", used.backing, *other.unlock, check=False)
        assert done.returncode in (20, 22, 42), done.stderr
    assert "file: the file belongs to another volume" in done.stdout
    used.tdefs("mount", used.backing, used.mountpoint, *other.unlock, "--log-file", used.log)
    with pytest.raises(OSError, match="Input/output"):
        os.open(used.mountpoint / "file", os.O_RDONLY)
    assert "file: the file belongs to another volume" in used.log.read_text()


def test_a_record_of_the_session_with_something_behind_it_is_mended_by_the_next_mount(used: Volume) -> None:
    record = used.backing / ".tdefs" / "session.json"
    with record.open("ab") as file:
        file.write(b"\xff" * 100)
    used.mount()
    used.umount()
    assert read_session(read_volume(used.backing)) is not None

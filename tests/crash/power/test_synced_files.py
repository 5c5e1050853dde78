"""Power cuts on single files: what was synced is there, and what was not is old or new, block by block.

Each block of 16 bytes says which file it was written to, where and when, so that whatever is found after a power
cut can be told to be right, old or foreign.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tdefs.control import ask
from tdefs.durable import fsync_directory
from tdefs.volume.description import read_volume
from tests.crash.conftest import Dice
from tests.crash.power.disk.model import Keeps
from tests.crash.power.disk.mounted import PowerCutDisk
from tests.support.volume import Volume
from tests.support.workspace import Workspace

BLOCK = 16
MOST_BLOCKS = 3 * 8192 // BLOCK
STEPS = 80
DIRECTORIES = ("base/5", "base/16384", "pg_wal", "pg_xact")
PLACES = (
    *(
        f"base/{database}/{number}{tail}"
        for database in (5, 16384)
        for number in (100, 200)
        for tail in ("", "_fsm")
    ),
    *(f"pg_wal/00000001000000000000000{number}" for number in range(4)),
    *(f"pg_xact/000{number}" for number in range(2)),
    "base/5/note",
)
# half of the places plain
SELECTIVE = """\
version: 1
databases:
  - database: 16384
    key: plain
kinds:
  wal: plain
"""


@dataclass
class File:
    """What is known of one file: for each block when it was last written, now and as of the last sync."""

    number: int
    written: dict[int, int] = field(default_factory=dict)
    durable: dict[int, int] = field(default_factory=dict)
    length: int = 0
    #: In blocks: no power cut may leave fewer.
    least: int = 0


class Expected:
    """What may be found at each place after a power cut."""

    def __init__(self) -> None:
        self.now: dict[str, File | None] = dict.fromkeys(PLACES)
        #: What was at each place since a sync last made it certain.
        self.possible: dict[str, list[File | None]] = {place: [None] for place in PLACES}
        self._files = 0
        self._clock = 0

    def taken(self) -> list[str]:
        return [place for place, file in self.now.items() if file]

    def put(self, place: str, file: File | None) -> None:
        self.now[place] = file
        self.possible[place].append(file)

    def certain(self, place: str) -> None:
        self.possible[place] = [self.now[place]]

    def new_file(self) -> File:
        self._files += 1
        return File(self._files)

    def tick(self) -> int:
        self._clock += 1
        return self._clock


def _block(file: File, index: int, when: int) -> bytes:
    return struct.pack("<4sIII", b"tdef", file.number, index, when)


class Life:
    """Random work on a mount, with a memory of what it asked for."""

    def __init__(self, root: Path, expected: Expected, dice: Random) -> None:
        self._root = root
        self._expected = expected
        self._dice = dice

    def step(self) -> None:
        taken = self._expected.taken()
        work = self._dice.choice(
            ("make", "write", "write", "cut", "sync", "sync", "sync_directory", "move", "remove")
        )
        if work == "make" or not taken:
            self._make(self._dice.choice(PLACES))
        elif work == "sync_directory":
            self._sync_directory(self._dice.choice(DIRECTORIES))
        else:
            getattr(self, f"_{work}")(self._dice.choice(taken))

    def _make(self, place: str) -> None:
        if self._expected.now[place]:
            return
        os.close(os.open(self._root / place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._expected.put(place, self._expected.new_file())

    def _write(self, place: str) -> None:
        file = self._file(place)
        first = self._dice.choice((0, file.length, self._dice.randrange(MOST_BLOCKS)))
        count = self._dice.choice((1, 7, 32, 100, 512))
        when = self._expected.tick()
        durable = self._dice.random() < 0.2
        fd = os.open(self._root / place, os.O_WRONLY | (os.O_DSYNC if durable else 0))
        try:
            data = b"".join(_block(file, index, when) for index in range(first, first + count))
            assert os.pwrite(fd, data, first * BLOCK) == len(data)
        finally:
            os.close(fd)
        file.written.update(dict.fromkeys(range(first, first + count), when))
        file.length = max(file.length, first + count)
        if durable:
            # of the rest nothing was promised
            file.durable.update(dict.fromkeys(range(first, first + count), when))
            file.least = max(file.least, first + count)
            self._expected.certain(place)

    def _cut(self, place: str) -> None:
        file = self._file(place)
        length = self._dice.randrange(file.length + 1)
        os.truncate(self._root / place, length * BLOCK)
        file.length = length
        file.least = min(file.least, length)
        for blocks in (file.written, file.durable):
            for index in [index for index in blocks if index >= length]:
                del blocks[index]

    def _sync(self, place: str) -> None:
        fd = os.open(self._root / place, os.O_RDONLY)
        try:
            self._dice.choice((os.fsync, os.fdatasync))(fd)
        finally:
            os.close(fd)
        file = self._file(place)
        file.durable, file.least = dict(file.written), file.length
        self._expected.certain(place)

    def _sync_directory(self, directory: str) -> None:
        fsync_directory(self._root / directory)
        for place in PLACES:
            if os.path.dirname(place) == directory:  # noqa: PTH120 - it is text
                self._expected.certain(place)

    def _move(self, place: str) -> None:
        target = self._dice.choice(PLACES)
        if target == place:
            return
        try:
            (self._root / place).rename(self._root / target)
        except OSError as error:
            assert error.errno == errno.EXDEV, "a plain file may not come to lie where the policy encrypts"
            return
        self._expected.put(target, self._file(place))
        self._expected.put(place, None)

    def _remove(self, place: str) -> None:
        (self._root / place).unlink()
        self._expected.put(place, None)

    def _file(self, place: str) -> File:
        file = self._expected.now[place]
        assert file
        return file


def _check(root: Path, expected: Expected) -> None:
    for place, possible in expected.possible.items():
        path = root / place
        content = path.read_bytes() if path.exists() else None
        if content is None:
            assert None in possible, f"{place} is gone"
            continue
        blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
        numbers = {int.from_bytes(block[4:8], "little") for block in blocks if any(block)}
        fits = [file for file in possible if file and not _misfit(blocks, numbers, file)]
        assert fits, f"{place}: {[_misfit(blocks, numbers, file) for file in possible if file]}, or nothing"


def _misfit(blocks: list[bytes], numbers: set[int], file: File) -> str:
    """Why the blocks are not those of the file; empty if they are."""
    if not numbers <= {file.number}:
        return f"blocks of the files {sorted(numbers)} instead of {file.number}"
    if len(blocks) < file.least:
        return f"{len(blocks)} blocks instead of {file.least} at least"
    for index, block in enumerate(blocks):
        oldest = file.durable.get(index, 0)
        if not any(block):
            if oldest:
                return f"block {index} is zero"
            continue
        magic, _, where, when = struct.unpack("<4sIII", block.ljust(BLOCK, b"\0"))
        if magic != b"tdef" or where != index:
            return f"block {index} is garbled"
        if when < oldest:
            return f"block {index} is of {when}, but {oldest} was synced"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("keeps", list(Keeps))
@pytest.mark.parametrize("policy", [None, SELECTIVE], ids=["everything", "selective"])
def test_synced_bytes_of_any_file_survive_a_power_cut(
    scratch: Workspace, disk: PowerCutDisk, dice: Dice, keeps: Keeps, policy: str | None
) -> None:
    disk.switch_on()
    volume = scratch.volume()
    volume.backing = disk.mountpoint / "backing"
    volume.init(policy=policy)
    volume.mount()
    for directory in DIRECTORIES:
        (volume.mountpoint / directory).mkdir(parents=True)
    disk.sync()
    for number in range(dice.rounds(2)):
        random = dice.random(number)
        expected = _as_found(volume)
        life = Life(volume.mountpoint, expected, random)
        if number % 2 == 0:
            # the manifest binds what the rest of the life changes; this disk does not hear of the daemon's syncfs
            for _ in range(random.randrange(STEPS)):
                life.step()
            volume.umount()
            disk.sync()
            volume.mount()
        for _ in range(random.randrange(STEPS)):
            life.step()
        _cut(volume, disk, keeps, random)
        _check(volume.mountpoint, expected)
    volume.umount()
    report = json.loads(volume.tdefs("verify", volume.backing, "--json", *volume.unlock, check=False).stdout)
    assert (report["files"]["damaged"], report["files"]["unreadable"]) == (0, 0), report


def _as_found(volume: Volume) -> Expected:
    """Begins with nothing: what earlier rounds have left is removed for good."""
    for place in PLACES:
        (volume.mountpoint / place).unlink(missing_ok=True)
    for directory in DIRECTORIES:
        fsync_directory(volume.mountpoint / directory)
    return Expected()


def _cut(volume: Volume, disk: PowerCutDisk, keeps: Keeps, dice: Random) -> None:
    disk.cut(keeps, dice.randrange(1 << 32))
    volume.kill()
    disk.switch_on()
    volume.mount()
    status = ask(read_volume(volume.backing), "status")
    assert status is not None
    assert status["tampering"]["differences"] == [], "nobody has touched the volume"

"""Random sequences of operations on the mount and on plain disk end in the same files."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.fs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.fs.twins import Failure, Twins, content, outcome
from tests.support.volume import Volume
from tests.support.workspace import Workspace

SEQUENCES = 150
STEPS = 25
LARGEST = 70_000
#: Where off-by-one mistakes live.
EDGES = [0, 1, 15, 16, 17, 511, 512, 513, 4095, 4096, 4097, 8176, 8191, 8192, 8193, 16_383, 16_384, 16_385, 65_536]


class File:
    """One file on the mount or on plain disk, with several ways to it open at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fds = [
            os.open(path, os.O_RDWR | os.O_CREAT, 0o600),
            os.open(path, os.O_WRONLY),
            os.open(path, os.O_RDWR | os.O_DSYNC),
            os.open(path, os.O_RDWR | os.O_DIRECT),
            os.open(path, os.O_WRONLY | os.O_APPEND),
        ]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    def content(self) -> bytes:
        return os.pread(self.fds[0], 2 * LARGEST, 0)

    def direct_content(self) -> bytes:
        with mmap.mmap(-1, 2 * LARGEST // 4096 * 4096) as buffer:
            return buffer[: os.preadv(self.fds[3], [buffer], 0)]


Step = Callable[[File], object]


def number(rng: random.Random) -> int:
    return rng.choice(EDGES) if rng.random() < 0.5 else rng.randrange(LARGEST)


def random_step(rng: random.Random) -> tuple[str, Step]:
    """One operation, with all that is random in it already chosen."""
    offset, size = number(rng), number(rng) % 30_000 + 1
    data = rng.randbytes(size) if rng.random() < 0.8 else bytes(size)
    match rng.randrange(12):
        case 0 | 1 | 2:
            fd = rng.randrange(3)
            return f"pwrite({fd}, {size}, {offset})", lambda file: os.pwrite(file.fds[fd], data, offset)
        case 3:
            at, pages = offset // 4096 * 4096, size // 4096 + 1
            buffer = mmap.mmap(-1, pages * 4096)
            buffer[:size] = data
            return f"direct write({pages}, {at})", lambda file: os.pwritev(file.fds[3], [buffer], at)
        case 4:
            return f"append({size})", lambda file: os.write(file.fds[4], data)
        case 5 | 6:
            return f"truncate({offset})", lambda file: os.ftruncate(file.fds[0], offset)
        case 7:
            return f"pread({size}, {offset})", lambda file: os.pread(file.fds[0], size, offset)
        case 8:
            return "direct content", File.direct_content
        case 9:
            return "drop the cache", drop
        case 10:
            return f"map({size}, {offset})", lambda file: write_map(file, data, offset)
        case _:
            return "reopen with O_TRUNC" if rng.random() < 0.2 else "reopen", reopen(rng.random() < 0.2)


def drop(file: File) -> None:
    os.fdatasync(file.fds[0])
    os.posix_fadvise(file.fds[0], 0, 0, os.POSIX_FADV_DONTNEED)


def write_map(file: File, data: bytes, offset: int) -> None:
    length = os.fstat(file.fds[0]).st_size
    if length:
        with mmap.mmap(file.fds[0], length) as mapped:
            end = min(length, offset + len(data))
            if offset < end:
                mapped[offset:end] = data[: end - offset]


def reopen(truncate: bool) -> Step:
    def step(file: File) -> None:
        file.close()
        if truncate:
            file.path.write_bytes(b"")
        file.__init__(file.path)  # type: ignore[misc]

    return step


def _apply(step: Step, file: File, _: Path) -> object:
    return step(file)


def run(files: tuple[File, File], rng: random.Random, steps: int) -> None:
    """Does the same random steps with both files, and compares after each."""
    history: list[str] = []
    for _ in range(steps):
        name, step = random_step(rng)
        history.append(name)
        plain, mount = files
        results = [outcome(partial(_apply, step, file), file.path) for file in (mount, plain)]
        assert results[0] == results[1], history
        assert mount.content() == plain.content(), history
        assert os.fstat(mount.fds[1]).st_size == os.fstat(plain.fds[1]).st_size, history
    assert mount.direct_content() == plain.content(), history


def test_random_reads_writes_and_truncates_equal_those_of_plain_disk(
    workspace: Workspace, encrypted: Volume, data_twins: Twins
) -> None:
    for seed in range(SEQUENCES):
        files = File(data_twins.plain / f"{seed}"), File(data_twins.mount / f"{seed}")
        try:
            run(files, random.Random(seed), STEPS)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
        finally:
            for file in files:
                file.close()
    assert content(data_twins.mount) == content(data_twins.plain)


def test_random_changes_survive_remounts(scratch: Workspace, volume: Volume) -> None:
    plain = scratch.directory("plain")
    for turn in range(2):
        volume.mount()
        for seed in range(15):
            files = File(plain / f"{seed}"), File(volume.mountpoint / f"{seed}")
            try:
                run(files, random.Random(1000 * turn + seed), 10)
            finally:
                for file in files:
                    file.close()
        volume.umount()
    volume.mount()
    assert content(volume.mountpoint) == content(plain)


# --- names

PLACES = ["base/5", "base/7", "global", "sub/base/5", "other"]
LEAVES = ["16385", "16385_fsm", "16386.1", "1259", "16385.tmp", "file"]


def random_name(rng: random.Random) -> str:
    return f"{rng.choice(PLACES)}/{rng.choice(LEAVES)}"


def random_change(rng: random.Random) -> tuple[str, Callable[[Path], object]]:
    """One change of names, with all that is random in it already chosen."""
    old, new, data = random_name(rng), random_name(rng), rng.randbytes(rng.choice([0, 5, 100, 9000]))
    flags = rng.choice([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
    places = rng.sample(PLACES, 2)
    match rng.randrange(14):
        case 0 | 1 | 2 | 3:
            return f"write {old}", lambda directory: (directory / old).write_bytes(data)
        case 4:
            return f"append to {old}", lambda directory: append(directory / old, data)
        case 5 | 6 | 7:
            return f"rename {old} {new} {flags}", lambda directory: renameat2(
                directory / old, directory / new, flags
            )
        case 8 | 9:
            return f"link {old} {new}", lambda directory: (directory / new).hardlink_to(directory / old)
        case 10:
            return f"unlink {old}", lambda directory: (directory / old).unlink()
        case 11:
            return (
                f"exchange {places}",
                lambda directory: renameat2(directory / places[0], directory / places[1], RENAME_EXCHANGE),
            )
        case 12:
            return f"move {places}", lambda directory: move(directory, *places)
        case _:
            return f"read {old}", lambda directory: (directory / old).read_bytes()


def append(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(data)


def move(directory: Path, old: str, new: str) -> None:
    """Renames a directory away and back into another's place, and makes a new one for the old name."""
    (directory / old).rename(directory / "away")
    (directory / new).rename(directory / old)
    (directory / "away").rename(directory / new)


@pytest.mark.parametrize("seed", range(3))
def test_random_renames_and_links_leave_every_file_readable_under_all_its_names(
    scratch: Workspace, volume: Volume, seed: int
) -> None:
    """Relation files carry their identity; whatever changes names through the mount, none is ever shut out."""
    rng = random.Random(seed)
    plain = scratch.directory("plain")
    history: list[str] = []
    for _ in range(2):
        volume.mount()
        for directory in (plain, volume.mountpoint):
            for place in PLACES:
                (directory / place).mkdir(parents=True, exist_ok=True)
        for _ in range(150):
            name, change = random_change(rng)
            expected, got = outcome(change, plain), outcome(change, volume.mountpoint)
            history.append(f"{name}: {expected.name if isinstance(expected, Failure) else 'done'}")
            assert got == expected, history[-12:]
        assert content(volume.mountpoint) == content(plain), history[-40:]
        volume.umount()
    volume.mount()
    assert content(volume.mountpoint) == content(plain), history

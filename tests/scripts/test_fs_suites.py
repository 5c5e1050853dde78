"""A part of scripts/fs-suites.sh: exercisers of file systems that others wrote find nothing wrong on a mount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.suites import fio, stress_ng
from tests.suites.exercise import Exercise, Outcome
from tests.suites.fs_suites import run_in, soundness
from tests.support.volume import Volume

#: Those that check what they read, names and attributes among it, and those that come from many sides at a time.
STRESSORS = (
    "aiol",
    "chdir",
    "copy-file",
    "dir",
    "dirdeep",
    "filename",
    "fpunch",
    "fstat",
    "getdent",
    "hdd",
    "hdd direct",
    "hdd dsync",
    "iomix",
    "lockf",
    "mmap",
    "msync",
    "open",
    "rename",
    "revio",
    "sendfile",
    "utime",
)
JOBS = (
    "psync, write, 4k",
    "psync, randwrite, 8k",
    "mmap, randrw, 4k",
    "libaio, randwrite, 64k",
    "io_uring, randwrite, 8k",
    "psync, randwrite, 517",
    "psync, randwrite, 52 to 70000 bytes",
    "splice, write, 4k",
    "O_DIRECT libaio, randwrite, 8k",
    "O_DIRECT psync, randwrite, 1000",
    "fsync each 16",
    "O_DSYNC",
    "four writers of a file each",
    "hundred files",
    "sparse, half written",
    "appended",
)
#: Of different ways to the disk: by parts of pages, past the cache, by write-back alone.
REMOUNTED = ("psync, randwrite, 517", "O_DIRECT libaio, randwrite, 8k", "mmap, randwrite, 64k", "hundred files")

pytestmark = pytest.mark.slow


def assert_nothing_is_wrong(exercises: list[Exercise], volume: Volume) -> None:
    """Runs them on the mount; what went wrong is told for all of them together."""
    wrong = {}
    for exercise in exercises:
        outcome, said = run_in(exercise, volume.mountpoint, volume.mountpoint)
        print(f"{exercise.name}: {outcome.text()}, {outcome.seconds:.1f} s")
        if not outcome.same_as(Outcome("ok")):
            wrong[exercise.name] = f"{outcome.text()}\n{said[-2000:]}"
    assert wrong == {}
    assert soundness(volume) == []


def _only(command: Sequence[str], directory: Path) -> Sequence[Sequence[str]]:
    return [command]


def test_stressors_that_verify_what_they_read_find_nothing_wrong(volume: Volume) -> None:
    volume.mount()
    chosen = stress_ng.exercises(seconds=1, names=STRESSORS)
    assert len(chosen) == len(STRESSORS)
    assert_nothing_is_wrong(chosen, volume)


def test_fio_reads_what_it_wrote_in_every_way_of_writing(volume: Volume) -> None:
    volume.mount()
    chosen = fio.exercises(names=JOBS)
    assert len(chosen) == len(JOBS)
    assert_nothing_is_wrong(chosen, volume)


def test_what_fio_wrote_is_there_after_a_remount(volume: Volume) -> None:
    volume.mount()
    chosen = {exercise.name: exercise for exercise in fio.exercises(names=REMOUNTED)}
    assert sorted(chosen) == sorted(REMOUNTED)
    directories = {name: volume.mountpoint / str(number) for number, name in enumerate(REMOUNTED)}
    for name, directory in directories.items():
        directory.mkdir()
        outcome, said = chosen[name].run(directory, volume.mountpoint)
        assert outcome.same_as(Outcome("ok")), said
    volume.umount()
    volume.mount()
    for name, directory in directories.items():
        reading = chosen[name].commands(directory)[-1]
        assert "--verify_only=1" in reading
        only_reading = replace(chosen[name], commands=partial(_only, reading))
        outcome, said = only_reading.run(directory, volume.mountpoint)
        assert outcome.same_as(Outcome("ok")), said
    assert soundness(volume) == []

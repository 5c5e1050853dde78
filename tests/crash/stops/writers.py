"""Processes that write files through a mount, and what must be found of them afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO, Final

from tests.support.processes import wait_until

BUFFERED: Final = "buffered"
DURABLE: Final = "durable"
MAPPED: Final = "mapped"
HELD: Final = "held"
#: Every way of writing: through the page cache, with O_DSYNC, through a map, in one file that stays open.
WAYS: Final = (BUFFERED, DURABLE, MAPPED, HELD)

# Tells of a file, as a line of JSON, after it was closed. Ends when its standard input ends, or its directory is
# gone: that exists on the mount only, so nothing is ever written to what lies below the mount point.
_SCRIPT = """
import json, mmap, os, random, select, sys
directory, way, seed = sys.argv[1:]
dice = random.Random(seed)
number = 0
def content(name, length):
    return (name.encode() * (length // len(name) + 1))[:length]
def over():
    return bool(select.select([0], [], [], 0)[0])
def told(name, length):
    print(json.dumps([name, length]), flush=True)
try:
    if way == "held":
        # one write for each length told: what was told is in the kernel's hands
        with open(f"{directory}/held", "wb", buffering=0) as file:
            length = 0
            while not over():
                more = dice.randrange(1, 5000)
                file.write(content("held", length + more)[length:])
                length += more
                told("held", length)
    while way != "held" and not over():
        number += 1
        name, length = f"{way}.{number}", dice.choice([1, 16, 100, 8191, 8192, 8193, 50_001, 300_000])
        path = f"{directory}/{name}"
        data = content(name, length)
        flags = os.O_DSYNC if way == "durable" else 0
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
        if way == "mapped":
            os.ftruncate(fd, length)
            with mmap.mmap(fd, length) as view:
                os.close(fd)
                view[:] = data
        else:
            cut = dice.randrange(length)
            os.write(fd, data[:cut])
            os.write(fd, data[cut:])
            os.close(fd)
        told(name, length)
except FileNotFoundError:
    pass
"""


@dataclass
class Writer:
    """One process that writes until it is told to stop."""

    process: subprocess.Popen[str]
    output: IO[str]
    errors: IO[str]
    #: What it said was written: name and length.
    written: dict[str, int] = field(default_factory=dict)

    @property
    def has_begun(self) -> bool:
        return self._so_far() != ""

    def stop(self, *, may_fail: bool = False) -> None:
        """Has it finish the file that it is at.

        :param may_fail: that it met an error is none of the test's
        """
        assert self.process.stdin
        self.process.stdin.close()
        code = self.process.wait(120)
        self.errors.seek(0)
        assert may_fail or code == 0, f"a writer met an error (exit code {code}): {self.errors.read()}"
        self.written = dict(json.loads(line) for line in self._so_far().splitlines())

    def _so_far(self) -> str:
        # not read(): the writer writes at the offset that this file shares with it
        fd = self.output.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()


@contextmanager
def writing(directory: Path, dice: Random, ways: tuple[str, ...] = WAYS) -> Iterator[list[Writer]]:
    """Writers at work in a directory of a mount, one for each way; the block begins when all have begun."""
    writers: list[Writer] = []
    try:
        for way in ways:
            output, errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 - closed below
            command = [sys.executable, "-c", _SCRIPT, str(directory), way, str(dice.random())]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=errors, cwd="/", text=True
            )
            writers.append(Writer(process, output, errors))
        assert wait_until(lambda: all(writer.has_begun for writer in writers), 60), "a writer does not get on"
        yield writers
    finally:
        for writer in writers:
            writer.process.kill()
            writer.process.wait()
            if writer.process.stdin:
                writer.process.stdin.close()
            writer.output.close()
            writer.errors.close()


def stop(writers: list[Writer], *, may_fail: bool = False) -> dict[str, int]:
    """Stops writers; returns the names and lengths of all that they have written."""
    for writer in writers:
        writer.stop(may_fail=may_fail)
    return {name: length for writer in writers for name, length in writer.written.items()}


def check_written(directory: Path, written: dict[str, int]) -> None:
    """Checks that every file is there, whole."""
    assert written
    for name, length in written.items():
        assert (directory / name).read_bytes() == (name.encode() * (length // len(name) + 1))[:length], name

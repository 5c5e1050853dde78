"""fio's jobs that read back and check what they have written, in every way of writing that Linux has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.suites.exercise import Exercise

_COMMON = "--size=8m --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=4 --thread"
#: Name of a job: its options.
JOBS: dict[str, str] = {
    **{
        f"{engine}, {pattern}, {size}": f"--ioengine={engine} --rw={pattern} --bs={size}"
        for engine in ("psync", "mmap", "libaio", "io_uring")
        for pattern in ("write", "randwrite", "randrw")
        for size in ("4k", "8k", "64k")
    },
    # no multiple of a sector, a page or a cipher block; the length a multiple of it, or fio makes the file anew
    **{
        f"psync, randwrite, {size}": f"--ioengine=psync --rw=randwrite --bs={size} --size={size * 4000}"
        for size in (517, 1000, 8191)
    },
    "psync, randwrite, 52 to 70000 bytes": "--ioengine=psync --rw=randwrite --bsrange=52-70000 --bs_unaligned "
    "--fallocate=truncate",
    "psync, write, 1m": "--ioengine=psync --rw=write --bs=1m",
    "vsync, write, 3k": "--ioengine=vsync --rw=write --bs=3k --size=6m",
    "pvsync2, randwrite, 8k": "--ioengine=pvsync2 --rw=randwrite --bs=8k",
    "splice, write, 4k": "--ioengine=splice --rw=write --bs=4k",
    "posixaio, randwrite, 8k": "--ioengine=posixaio --rw=randwrite --bs=8k --iodepth=8",
    "O_DIRECT libaio, randwrite, 8k": "--ioengine=libaio --rw=randwrite --bs=8k --direct=1 --iodepth=16",
    "O_DIRECT io_uring, randrw, 4k": "--ioengine=io_uring --rw=randrw --bs=4k --direct=1 --iodepth=16",
    "O_DIRECT psync, write, 64k": "--ioengine=psync --rw=write --bs=64k --direct=1",
    "O_DIRECT psync, randwrite, 512": "--ioengine=psync --rw=randwrite --bs=512 --direct=1 --size=1m",
    "O_DIRECT psync, randwrite, 1000": "--ioengine=psync --rw=randwrite --bs=1000 --direct=1 --size=1000000",
    "fsync each 16": "--ioengine=psync --rw=randwrite --bs=8k --fsync=16",
    "fdatasync each 8": "--ioengine=libaio --rw=randwrite --bs=8k --fdatasync=8",
    "O_SYNC": "--ioengine=psync --rw=randwrite --bs=8k --sync=1 --size=2m",
    "O_DSYNC": "--ioengine=psync --rw=write --bs=8k --sync=dsync --size=2m",
    "four writers of a file each": "--ioengine=psync --rw=randwrite --bs=8k --numjobs=4 --size=4m",
    "hundred files": "--ioengine=psync --rw=randwrite --bs=8k --nrfiles=100 --openfiles=20 --filesize=80k "
    "--size=8000k",
    "sparse, half written": "--ioengine=psync --rw=randwrite --bs=8k --size=64m --io_size=4m --fallocate=none",
    "truncated before": "--ioengine=psync --rw=randwrite --bs=8k --fallocate=truncate",
    "appended": "--ioengine=psync --rw=write --bs=5000 --file_append=1",
    "falloc": "--ioengine=falloc --rw=write --bs=64k --verify=0",
    "filecreate": "--ioengine=filecreate --nrfiles=200 --filesize=4k --verify=0",
    "filestat": "--ioengine=filestat --nrfiles=200 --filesize=4k --verify=0",
    "filedelete": "--ioengine=filedelete --nrfiles=200 --filesize=4k --verify=0",
    "ftruncate": "--ioengine=ftruncate --rw=write --bs=4k --verify=0",
}


def exercises(names: Sequence[str] = ()) -> list[Exercise]:
    """The jobs.

    :param names: only these; all when empty
    """
    return [_exercise(name, words.split()) for name, words in JOBS.items() if not names or name in names]


def _exercise(name: str, words: list[str]) -> Exercise:
    def commands(directory: Path) -> list[list[str]]:
        command = ["fio", "--name=job", "--directory=.", *_COMMON.split(), *words]
        # a job first drops what the kernel has cached: the second one reads what was stored
        return [command, [*command, "--verify_only=1"]] if _writes_each_block_once(words) else [command]

    return Exercise("fio", name, commands, _judge, stays=True)


def _writes_each_block_once(words: Sequence[str]) -> bool:
    """Return whether a job leaves nothing but what it can find again in a second run."""
    writes_alone = "--rw=write" in words or "--rw=randwrite" in words
    return writes_alone and not any(
        word.startswith(("--verify=0", "--file_append", "--io_size")) for word in words
    )


def _judge(code: int, said: str, directory: Path) -> tuple[str, frozenset[str]]:
    if code == 0:
        return "ok", frozenset()
    found = re.search(r"error=([A-Z][^\n,]*)|: ([A-Z][a-z ]+): (?:read|write) offset|(verify: bad)", said)
    why = next((group for group in found.groups() if group), "") if found else ""
    return "failed", frozenset({why or said[-300:]})

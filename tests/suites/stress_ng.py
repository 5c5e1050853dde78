"""stress-ng's stressors of the file system, each checking what it reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tests.suites.exercise import Exercise, without_figures

#: The class "filesystem" and what else of stress-ng works on files, each so small that it comes around often.
STRESSORS: dict[str, str] = {
    "access": "",
    "aio": "",
    "aiol": "",
    "chattr": "",
    "chdir": "--chdir-dirs 256",
    "chmod": "",
    "chown": "",
    "copy-file": "--copy-file-bytes 128m",
    "dentry": "--dentries 512",
    "dir": "--dir-dirs 256",
    "dirdeep": "--dirdeep-inodes 100000",
    "dirmany": "",
    "dnotify": "",
    "dup": "",
    "fallocate": "--fallocate-bytes 8m",
    "fanotify": "",
    "fcntl": "",
    "fiemap": "--fiemap-bytes 8m",
    "file-ioctl": "",
    "filename": "",
    "flock": "",
    "fpunch": "",
    "fsize": "",
    "fstat": "",
    "getdent": "",
    "handle": "",
    "hdd": "--hdd-bytes 16m",
    "inode-flags": "",
    "inotify": "",
    "io": "",
    "iomix": "--iomix-bytes 8m",
    "io-uring": "",
    "lease": "",
    "link": "",
    "locka": "",
    "lockf": "",
    "lockofd": "",
    "madvise": "",
    "mknod": "",
    "mmap": "--mmap-bytes 8m --mmap-file",
    "msync": "--msync-bytes 8m",
    "open": "",
    "readahead": "--readahead-bytes 8m",
    "rename": "",
    "revio": "--revio-bytes 8m",
    "seek": "--seek-size 8m",
    "sendfile": "--sendfile-size 4m",
    "splice": "",
    "symlink": "",
    "sync-file": "--sync-file-bytes 8m",
    "touch": "",
    "utime": "",
    "verity": "",
    "xattr": "",
}
#: How the stressor "hdd" opens its files and writes, one run each.
HDD_OPTIONS = ("direct", "dsync", "sync", "fsync,wr-rnd,rd-rnd", "fdatasync,wr-seq,rd-seq,iovec", "noatime,utimes")
#: Of the class, but not about the files below a directory: mounts of its own, other file systems, devices.
LEFT_OUT = ("bind-mount", "binderfs", "eventfd", "ioprio", "procfs")

_WORDS = {0: "ok", 2: "failed", 3: "not supported", 4: "not supported"}
# what every run says
_USUAL = re.compile(
    r"setting to|dispatching hogs|successful run|metrics|passed|failed: N|skipped|legacy|note:"
    r"|removing|using a maximum|dentries allocated"
)


def exercises(seconds: int, names: Sequence[str] = ()) -> list[Exercise]:
    """The stressors, each for so many seconds with two processes.

    :param names: only these; all when empty
    """
    chosen = [_exercise(name, name, words.split(), seconds) for name, words in STRESSORS.items()]
    chosen += [
        _exercise(f"hdd {text}", "hdd", ["--hdd-bytes", "8m", "--hdd-opts", text], seconds) for text in HDD_OPTIONS
    ]
    return [exercise for exercise in chosen if not names or exercise.name in names]


def _exercise(name: str, stressor: str, words: list[str], seconds: int) -> Exercise:
    def commands(directory: Path) -> list[list[str]]:
        command = ["stress-ng", f"--{stressor}", "2", "--timeout", f"{seconds}s", "--verify", "--temp-path", "."]
        return [[*command, *words]]

    return Exercise("stress-ng", name, commands, _judge, limit=60 + 10 * seconds)


def _judge(code: int, said: str, directory: Path) -> tuple[str, frozenset[str]]:
    notes = set()
    skipped = False
    for line in said.splitlines():
        skipped |= "skipping" in line
        if found := re.match(r"stress-ng: (?:info|warn|fail|error): +\[\d+\] (.*)", line):
            note = without_figures(found[1], directory)
            if not _USUAL.search(note):
                notes.add(note)
    word = _WORDS.get(code, f"exit code {code}")
    return "not supported" if skipped and code == 0 else word, frozenset(notes)

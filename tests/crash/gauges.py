"""What a daemon holds, as numbers: descriptors, memory, inodes, threads, its log, and the files below it."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from tdefs.format.suite1.layout import stored_size
from tests.support.volume import Volume


@dataclass(frozen=True)
class Gauges:
    """One reading."""

    files: int
    """Descriptors of files in the backing directory."""
    directories: int
    deleted: int
    """Descriptors of files that have no name any more."""
    other_descriptors: int
    known_inodes: int
    open_handles: int
    rss_kb: int
    pss_kb: int
    threads: int
    locks: int
    log_lines: int
    backing_files: int
    backing_kb: int
    """Space that they take."""
    relation_files_made: int
    """Files made since the mount, of which nearly all are relation files."""

    @classmethod
    def read(cls, volume: Volume) -> Gauges:
        (daemon,) = volume.daemons
        process = Path("/proc", str(daemon))
        status = volume.status()
        kinds = Counter(_kinds(process / "fd", volume.data))
        memory = _fields(process / "smaps_rollup")
        below = list(_walk(volume.backing))
        return cls(
            files=kinds["file"],
            directories=kinds["directory"],
            deleted=kinds["deleted"],
            other_descriptors=kinds["other"],
            known_inodes=status["known_inodes"],
            open_handles=status["open_handles"],
            rss_kb=memory["Rss"],
            pss_kb=memory["Pss"],
            threads=_fields(process / "status")["Threads"],
            locks=sum(line.split()[4] == str(daemon) for line in Path("/proc/locks").read_text().splitlines()),
            log_lines=len(re.findall(r"^\d{4}-", volume.log.read_text(), re.MULTILINE)),
            backing_files=len(below),
            backing_kb=sum(one.st_blocks for _, one in below) // 2,
            relation_files_made=status["requests"]["create"],
        )


def table(readings: Iterable[tuple[str, Gauges]]) -> str:
    """The readings side by side, one row for each gauge."""
    readings = list(readings)
    rows = [["", *(name for name, _ in readings)]]
    rows += [
        [field.name.replace("_", " "), *(str(getattr(gauges, field.name)) for _, gauges in readings)]
        for field in fields(Gauges)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def differences(volume: Volume) -> list[str]:
    """Where the backing directory holds other files, or other sizes, than the mount shows."""
    shown = {path: _stored(status) for path, status in _walk(volume.mountpoint)}
    stored = {path: status.st_size for path, status in _walk(volume.data)}
    return [
        f"{path}: {stored.get(path)} bytes, and the mount's {shown.get(path)} would take"
        for path in sorted(shown.keys() | stored.keys())
        if shown.get(path) != stored.get(path)
    ]


def _stored(status: os.stat_result) -> int:
    """The stored size of an encrypted file of that length."""
    return stored_size(status.st_size)


def _walk(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """All regular files; those that go away meanwhile, as autovacuum's do, are left out."""
    for parent, _, names in os.walk(directory):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield str(path.relative_to(directory)), status


def _kinds(directory: Path, backing: Path) -> Iterable[str]:
    for entry in os.listdir(directory):
        try:
            # what it leads to need not be a path
            target = os.readlink(directory / entry)  # noqa: PTH115
            mode = (directory / entry).stat().st_mode
        except OSError:
            continue
        if not target.startswith(f"{backing}/") or target.startswith(f"{backing}/.tdefs/"):
            yield "other"
        elif target.endswith(" (deleted)"):
            yield "deleted"
        else:
            yield "directory" if stat.S_ISDIR(mode) else "file"


def _fields(path: Path) -> dict[str, int]:
    """The lines of a file of /proc that are a name and a number."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if (words := value.split()) and words[0].isdecimal():
            found[name] = int(words[0])
    return found

"""A cluster on a mount: its settings, its checksums, and where its WAL, tablespaces and logs lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tdefs.doctor.findings import Finding, advice, risk
from tdefs.pg.control import (
    CONTROL_FILE,
    MOST_CONTROL_BYTES,
    BadControlFile,
    UnknownControlVersion,
    parse_control_file,
)
from tdefs.pg.settings import Setting, read_settings
from tdefs.private import read_regular

_ENOUGH_WAL_BUFFERS_KB = 16 << 10
_KB = {"b": 1 / 1024, "": 8, "kb": 1, "mb": 1 << 10, "gb": 1 << 20}

#: Settings that must not be switched off, and what happens otherwise.
_MUST_BE_ON = {
    "fsync": "a crash of the host can lose commits and damage any file beyond repair",
    "full_page_writes": "a page that a crash left half written is not repaired",
}
#: Settings that must not be switched on.
_MUST_BE_OFF = {
    "data_sync_retry": "a failed sync is tried again, and its success says nothing: the data may be gone",
    "ignore_checksum_failure": "damaged pages are read as if they were right",
    "zero_damaged_pages": "damaged pages are silently replaced by empty ones",
}
_NONE = Setting("", "")
_OFF = ("off", "false", "no", "0")
#: Levels at which a commit does not wait for a standby's disk.
_NOT_ON_STANDBY = ("local", "remote_write")
#: Where a cluster may lie below a mount point: PGDATA itself, or as in /var/lib/postgresql/15/main.
_CLUSTER_LEVELS = 3


def find_clusters(mountpoint: Path) -> list[Path]:
    """Return the data directories at and below *mountpoint*.

    A link that the daemon refuses, or a directory that this user may not look into, is passed over.
    """
    found: list[Path] = []
    level = [mountpoint]
    for _ in range(_CLUSTER_LEVELS):
        found += [place for place in level if os.path.exists(place / CONTROL_FILE)]  # noqa: PTH110 - never raises
        level = [below for place in level for below in _directories(place)]
    return sorted(found)


def _directories(place: Path) -> list[Path]:
    with suppress(OSError):
        return [place / name for name in os.listdir(place) if os.path.isdir(place / name)]  # noqa: PTH112 - likewise
    return []


def examine_cluster(pgdata: Path, mountpoints: list[Path]) -> Iterator[Finding]:
    """Yield what weakens the cluster in *pgdata*, a directory on one of the tdefs *mountpoints*."""
    settings = read_settings(pgdata)
    yield from _durability(settings)
    yield from _checksums(pgdata)
    yield from _places(pgdata, settings, mountpoints)
    yield from _speed(settings)


def _durability(settings: Mapping[str, Setting]) -> Iterator[Finding]:
    for name, consequence in _MUST_BE_ON.items():
        if name in settings and not settings[name].is_on:
            yield risk(f"{name} = off ({settings[name].where}): {consequence}", f"set {name} = on")
    for name, consequence in _MUST_BE_OFF.items():
        if name in settings and settings[name].is_on:
            yield risk(f"{name} = on ({settings[name].where}): {consequence}", f"set {name} = off")
    synchronous = settings.get("synchronous_commit", Setting("on", ""))
    if synchronous.value.lower() in _OFF:
        yield risk(
            f"synchronous_commit = off ({synchronous.where}): the last commits before a crash are lost",
            "set synchronous_commit = on, and switch it off only in the transactions that may be lost",
        )
    elif synchronous.value.lower() in _NOT_ON_STANDBY and settings.get("synchronous_standby_names", _NONE).value:
        yield advice(
            f"synchronous_commit = {synchronous.value} ({synchronous.where}): should this host be lost, the "
            "standby may lack the last commits",
            "set synchronous_commit = on",
        )
    method = settings.get("recovery_init_sync_method", _NONE)
    if method.value.lower() == "syncfs":
        yield risk(
            f"recovery_init_sync_method = syncfs ({method.where}): on FUSE syncfs reaches no disk, so after a "
            "crash of the server what it had not synced stays so",
            "set recovery_init_sync_method = fsync",
        )


def _checksums(pgdata: Path) -> Iterator[Finding]:
    try:
        if not parse_control_file(read_regular(pgdata / CONTROL_FILE, MOST_CONTROL_BYTES)).checksums:
            yield risk(
                "the cluster has no data checksums: damage to the ciphertext is not noticed",
                f'stop the server, then run "pg_checksums --enable -D {pgdata}"',
            )
    except UnknownControlVersion as error:
        yield advice(f"whether the cluster has data checksums is not known: {error}", "SHOW data_checksums")
    except (OSError, BadControlFile) as error:
        yield risk(f"pg_control cannot be read: {error}", "see the server's log")


def _places(pgdata: Path, settings: Mapping[str, Setting], mountpoints: list[Path]) -> Iterator[Finding]:
    directory = settings.get("log_directory")
    if directory is not None and settings.get("logging_collector", Setting("off", "")).is_on:
        target = pgdata / directory.value
        if not _is_below(target, mountpoints):
            yield risk(
                f"the server logs to {target}: statements in the log, with their data, are in the clear",
                "keep log_directory on the mount, or log_statement and log_min_error_statement low",
            )


def _speed(settings: Mapping[str, Setting]) -> Iterator[Finding]:
    method = settings.get("wal_sync_method")
    if method is None or not method.value.startswith("open_"):
        return
    buffers = settings.get("wal_buffers")
    if buffers is None or (_kilobytes(buffers.value) or 0) < _ENOUGH_WAL_BUFFERS_KB:
        yield advice(
            f"wal_sync_method = {method.value} with small WAL buffers: bulk loads sync page by page",
            "set wal_buffers = 64MB and wal_writer_delay = 10ms, or leave wal_sync_method at its default",
        )


def _kilobytes(value: str) -> float | None:
    """Return a size as PostgreSQL writes it, in KB; without a unit wal_buffers counts pages of 8 KB."""
    match = re.fullmatch(r"\s*(\d+)\s*([kmg]?b)?\s*", value, re.IGNORECASE)
    return int(match[1]) * _KB[(match[2] or "").lower()] if match else None


def _is_below(path: Path, mountpoints: list[Path]) -> bool:
    return any(path == mountpoint or mountpoint in path.parents for mountpoint in mountpoints)

"""What ``tdefs verify`` finds, and that it finds nothing else.

Covers tdefs/cli/verify.py and tdefs/offline/verifying.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import verify
from tdefs.errors import Exit
from tdefs.offline.reader import CHUNK_SIZE
from tdefs.volume.lock import VolumeLock
from tests.support.offline_volumes import (
    KEY_COMMAND,
    PG_DATA,
    SEGMENT_PAGES,
    Command,
    SmallVolume,
    good_pages,
    relation_map,
)

TABLE = "base/5/16384"
UNLOCK = ("--key-command", KEY_COMMAND)


def report(command: Command, small: SmallVolume) -> Any:
    return command.json(verify, small.volume.backing, *UNLOCK)


def findings(command: Command, small: SmallVolume) -> dict[str, str]:
    """Return what is found, by path; every finding comes with a hint."""
    found = report(command, small)["findings"]
    assert all(one["hint"] for one in found)
    assert len({one["path"] for one in found}) == len(found)
    return {one["path"]: one["error"] for one in found}


def healthy(small: SmallVolume) -> None:
    """Fill a volume with a cluster of every kind of file."""
    small.cluster()
    small.encrypt(TABLE, good_pages(3) + bytes(8192) + good_pages(1, 4))
    small.encrypt(f"{TABLE}.1", good_pages(2, SEGMENT_PAGES))
    small.encrypt(f"{TABLE}_fsm", good_pages(1))
    small.encrypt("base/5/1259", bytes(3 * 8192) + (PG_DATA / "pg15_pg_class_block_3.page").read_bytes())
    small.plain("empty", b"")


def test_healthy_volume_is_clean(small: SmallVolume, command: Command) -> None:
    healthy(small)
    code, output = command.run(verify, small.volume.backing, *UNLOCK)
    assert code == 0
    assert [line.rsplit("  ", 1) for line in output.splitlines()] == [
        ["files                  ", "12"],
        ["encrypted              ", "11"],
        ["plain                  ", "0"],
        ["empty                  ", "1"],
        ["damaged                ", "0"],
        ["unreadable             ", "0"],
        ["pages checked          ", "12"],
        ["pages not checked      ", "0"],
        ["WAL files not checked  ", "1"],
        ["checksums in the volume", "on"],
        ["findings               ", "0"],
    ]
    assert command.errors == ""


def test_json_has_stable_keys(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage(TABLE, 8192 + 5000)
    found = report(command, small)
    assert set(found) == {
        *("backing", "volume_id", "mounted", "files", "pages", "unchecked_pages", "wal_files", "checksums"),
        *("findings", "unchecked", "notes"),
    }
    assert found["files"] == {"encrypted": 11, "plain": 0, "empty": 1, "damaged": 0, "unreadable": 0}
    assert set(found["findings"][0]) == {"path", "kind", "error", "hint", "blocks"}


def test_damage_has_an_exit_code_of_its_own(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage("PG_VERSION", 100)
    code, output = command.run(verify, small.volume.backing, *UNLOCK)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert output.startswith(
        "PG_VERSION: the header is damaged: its checksum does not match\nHINT:  restore the file from a backup"
    )
    assert output.endswith("findings                 1\n")


@pytest.mark.parametrize("offset", [*range(0, 512, 16), 511])
def test_flipped_bit_anywhere_in_a_header_is_found(small: SmallVolume, command: Command, offset: int) -> None:
    healthy(small)
    small.damage(TABLE, offset)
    assert findings(command, small) == {TABLE: "the header is damaged: its checksum does not match"}


@pytest.mark.parametrize("size", [6, 511, 512, 8191])
def test_file_cut_inside_its_header_is_found(small: SmallVolume, command: Command, size: int) -> None:
    healthy(small)
    small.cut(TABLE, size)
    assert findings(command, small) == {TABLE: f"the file is cut inside its header page: {size} bytes are left"}


def test_file_cut_to_less_than_a_magic_number_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.cut(TABLE, 1)
    assert findings(command, small) == {
        TABLE: "the file has no header, and nothing in this volume is stored in the clear"
    }


@pytest.mark.parametrize("left", [1, 15])
def test_file_cut_inside_its_first_block_is_found(small: SmallVolume, command: Command, left: int) -> None:
    healthy(small)
    small.cut(TABLE, 8192 + left)
    assert findings(command, small) == {
        TABLE: f"the file is cut inside its first block: {left} of 16 bytes are left"
    }


@pytest.mark.parametrize(("size", "length"), [(16, 16), (17, 1), (8191, 8175), (8208, 8208), (16383, 16367)])
def test_relation_cut_inside_a_page_is_found(small: SmallVolume, command: Command, size: int, length: int) -> None:
    healthy(small)
    small.cut(TABLE, 8192 + size)
    assert findings(command, small) == {
        TABLE: f"the length of {length} bytes is not a multiple of the page size of 8192"
    }


def test_file_cut_to_nothing_counts_as_empty(small: SmallVolume, command: Command) -> None:
    # PostgreSQL itself truncates relations to nothing, at any time: a length alone proves no damage
    healthy(small)
    small.cut(f"{TABLE}.1", 0)
    assert report(command, small)["files"]["empty"] == 2


def test_swapped_relation_files_are_both_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    other = "base/16400/16384"
    small.encrypt(other, good_pages(1))
    one, two = small.path(TABLE), small.path(other)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    five, other_database = "relation file 16384 of database 5", "relation file 16384 of database 16400"
    assert findings(command, small) == {
        TABLE: f"the header belongs to {other_database}, but lies in the place of {five}",
        other: f"the header belongs to {five}, but lies in the place of {other_database}",
    }


def test_file_of_another_volume_is_found(small: SmallVolume, command: Command, tmp_path: Path) -> None:
    healthy(small)
    other = SmallVolume(tmp_path / "other")
    other.encrypt(TABLE, good_pages(1))
    small.path(TABLE).write_bytes(other.path(TABLE).read_bytes())
    assert findings(command, small) == {
        TABLE: f"the file belongs to another volume ({other.volume.volume_id.hex()})"
    }


def test_file_without_a_header_is_found_where_nothing_is_plain(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.plain(TABLE, b"in the clear")
    assert findings(command, small) == {
        TABLE: "the file has no header, and nothing in this volume is stored in the clear"
    }


def test_wiped_header_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    stored = small.path(TABLE).read_bytes()
    small.path(TABLE).write_bytes(bytes(8192) + stored[8192:])
    assert findings(command, small) == {TABLE: "the header is all zero: it was wiped"}


def test_file_that_was_never_synced_before_a_crash_is_a_note(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.plain("base/5/16500", bytes(8192))
    small.crash()
    found = report(command, small)
    assert found["findings"] == []
    whole, lost = found["notes"]
    assert "not unmounted cleanly" in whole["text"]
    assert lost["path"] == "base/5/16500"
    assert "never synced" in lost["text"]


def test_flipped_bit_in_a_page_is_caught_by_its_checksum(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage(TABLE, 8192 + 2 * 8192 + 4321)
    small.damage(TABLE, 8192 + 4 * 8192 + 4321)
    (found,) = report(command, small)["findings"]
    assert found["error"].startswith("block 2: the page checksum does not match: stored ")
    assert found["error"].endswith(", and 1 more bad page")
    assert found["blocks"] == [2, 4]
    assert found["kind"] == "relation"
    assert "restore the relation from a backup" in found["hint"]


def test_hint_says_that_a_crashed_cluster_repairs_torn_pages(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.cluster(state=6)  # DB_IN_PRODUCTION
    small.damage(TABLE, 8192 + 4321)
    (found,) = report(command, small)["findings"]
    assert "not shut down cleanly, and PostgreSQL repairs pages torn by a crash" in found["hint"]


def test_bad_page_of_a_later_segment_is_named_by_its_block_in_the_relation(
    small: SmallVolume, command: Command
) -> None:
    healthy(small)
    small.damage(f"{TABLE}.1", 8192 + 8192 + 100)
    assert report(command, small)["findings"][0]["blocks"] == [SEGMENT_PAGES + 1]


def test_bad_page_behind_the_first_chunk_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.encrypt(TABLE, good_pages(130))
    small.damage(TABLE, 8192 + CHUNK_SIZE + 8192 + 7)
    assert report(command, small)["findings"][0]["blocks"] == [129]


def test_free_space_map_is_checked_where_there_are_checksums(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage(f"{TABLE}_fsm", 8192 + 300)
    assert list(findings(command, small)) == [f"{TABLE}_fsm"]
    small.cluster(control="pg15_no_checksums")
    assert findings(command, small) == {}


def test_without_checksums_a_scrambled_page_header_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.cluster(control="pg15_no_checksums")
    small.damage(TABLE, 8192 + 5000)  # nobody can tell
    small.damage(f"{TABLE}.1", 8192 + 10)  # decrypts to another first block
    found = findings(command, small)
    assert list(found) == [f"{TABLE}.1"]
    assert found[f"{TABLE}.1"].startswith(f"block {SEGMENT_PAGES}: the page header is ")


def test_each_relation_file_belongs_to_the_nearest_cluster_above(small: SmallVolume, command: Command) -> None:
    small.cluster("15/main/")
    small.cluster("15/other/", control="pg15_no_checksums")
    for cluster in ("main", "other"):
        small.encrypt(f"15/{cluster}/{TABLE}", good_pages(2))
        small.damage(f"15/{cluster}/{TABLE}", 8192 + 5000)
    found = report(command, small)
    assert found["checksums"] == {"15/main": "on", "15/other": "off"}
    assert [one["path"] for one in found["findings"]] == [f"15/main/{TABLE}"]


def test_tablespace_without_a_cluster_has_its_page_headers_checked(small: SmallVolume, command: Command) -> None:
    path = "PG_15_202209061/5/16384"
    small.encrypt(path, good_pages(2))
    small.damage(path, 8192 + 5000)
    found = report(command, small)
    assert found["findings"] == []
    assert (found["pages"], found["unchecked_pages"]) == (0, 2)
    assert found["checksums"] == {"": "unknown: there is no pg_control above these files"}
    small.damage(path, 8192 + 8192 + 14)
    assert list(findings(command, small)) == [path]


def test_damaged_control_file_is_found_and_checksums_are_unknown(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage("global/pg_control", 8192 + 100)
    found = report(command, small)
    assert [one["path"] for one in found["findings"]] == ["global/pg_control"]
    assert found["checksums"][""].startswith("unknown: pg_control is ")


def test_control_file_with_a_damaged_header_is_found_once(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage("global/pg_control", 100)
    assert findings(command, small) == {"global/pg_control": "the header is damaged: its checksum does not match"}


def test_read_error_is_found_and_the_rest_is_still_read(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(small)
    small.damage("PG_VERSION", 100)
    bad = small.path(TABLE).stat().st_ino
    pread = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == bad and offset >= 8192:
            raise OSError(5, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    found = findings(command, small)
    assert found[TABLE] == "the file cannot be read: Input/output error"
    assert "PG_VERSION" in found


def test_mounted_volume_is_verified_with_a_warning(small: SmallVolume, command: Command) -> None:
    healthy(small)
    lock = VolumeLock(small.volume)
    lock.acquire()
    try:
        found = report(command, small)
    finally:
        lock.release()
    assert found["mounted"] is True
    assert found["findings"] == []
    assert "is in use" in command.errors
    assert "HINT:" in command.errors


def test_verifying_writes_nothing(small: SmallVolume, command: Command) -> None:
    healthy(small)
    files = [path for path in small.volume.data.rglob("*") if path.is_file()]
    before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    report(command, small)
    assert [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before


def test_bytes_behind_the_header_record_are_found_though_no_reader_needs_them(
    small: SmallVolume, command: Command
) -> None:
    healthy(small)
    small.damage(TABLE, 5000)
    assert findings(command, small) == {TABLE: "the header page is not zero after the header record"}


@pytest.mark.parametrize(("path", "offset"), [("PG_VERSION", 0), ("base/5/PG_VERSION", 2)])
def test_garbled_version_file_is_found(small: SmallVolume, command: Command, path: str, offset: int) -> None:
    healthy(small)
    small.damage(path, 8192 + offset)
    assert findings(command, small) == {path: "PG_VERSION is damaged: it holds no version of PostgreSQL"}


def test_version_file_of_another_version_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.encrypt("base/5/PG_VERSION", b"14\n")
    small.encrypt("base/6/PG_VERSION", b"15\n")
    small.encrypt("base/6/pg_filenode.map", relation_map())
    assert findings(command, small) == {
        "base/5/PG_VERSION": "PG_VERSION is damaged: it says 14, all others of the cluster say 15"
    }


def test_version_files_without_a_majority_are_all_named(small: SmallVolume, command: Command) -> None:
    """One of them is damaged, and nobody can tell which."""
    healthy(small)
    small.encrypt("base/5/PG_VERSION", b"35\n")
    assert findings(command, small) == {
        path: f"PG_VERSION is damaged, here or elsewhere: it says {own}, others of the cluster say {other}"
        for path, own, other in (("PG_VERSION", 15, 35), ("base/5/PG_VERSION", 35, 15))
    }


def test_garbled_relation_map_is_found(small: SmallVolume, command: Command) -> None:
    healthy(small)
    small.damage("global/pg_filenode.map", 8192 + 300)
    small.cut("base/5/pg_filenode.map", 8192 + 400)
    assert findings(command, small) == {
        "global/pg_filenode.map": "pg_filenode.map is damaged: its CRC does not match",
        "base/5/pg_filenode.map": "pg_filenode.map is damaged: it cannot have a length of 400 bytes",
    }


def test_control_file_of_a_version_that_cannot_be_is_found(small: SmallVolume, command: Command) -> None:
    """A garbled first block makes the version another number, which is not a newer PostgreSQL."""
    healthy(small)
    small.damage("global/pg_control", 8192)
    assert list(findings(command, small)) == ["global/pg_control"]


def test_huge_control_file_is_not_read_to_its_end(small: SmallVolume, command: Command) -> None:
    healthy(small)
    os.truncate(small.path("global/pg_control"), 8192 + (64 << 20))
    assert findings(command, small) == {"global/pg_control": f"pg_control has 8192 bytes, not {64 << 20}"}


REMOVED = {
    "PG_VERSION": "the file is missing: the data directory has no PG_VERSION",
    "global/pg_control": "the file is missing: the data directory has no global/pg_control",
    "global/pg_filenode.map": "the file is missing: the data directory has no global/pg_filenode.map",
    "base/5/PG_VERSION": "the file is missing: the database has no PG_VERSION",
    "base/5/pg_filenode.map": "the file is missing: the database has no pg_filenode.map",
    "pg_wal/000000010000000000000001": "the WAL segment is missing",
    "pg_xact/0000": "the file is missing: it says which transactions were committed",
    TABLE: "the file is missing: there is a fsm fork and no main fork",
}


@pytest.mark.parametrize("path", REMOVED)
def test_file_that_must_be_there_is_missed(small: SmallVolume, command: Command, path: str) -> None:
    healthy(small)
    small.path(f"{TABLE}.1").unlink()
    small.path(path).unlink()
    assert findings(command, small) == {path: REMOVED[path]}
    code, output = command.run(verify, small.volume.backing, *UNLOCK)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert f"{path}: {REMOVED[path]}\nHINT:  " in output


def test_file_whose_absence_proves_nothing_is_not_missed(small: SmallVolume, command: Command) -> None:
    """A relation without other forks, a free-space map: PostgreSQL removes and makes them at any time."""
    healthy(small)
    for path in ("base/5/1259", f"{TABLE}_fsm", f"{TABLE}.1"):
        small.path(path).unlink()
    assert findings(command, small) == {}


def test_cluster_above_the_volume_root_is_looked_at_too(small: SmallVolume, command: Command) -> None:
    small.cluster("15/main/")
    small.encrypt(f"15/main/{TABLE}", good_pages(1))
    small.path("15/main/PG_VERSION").unlink()
    assert list(findings(command, small)) == ["15/main/PG_VERSION"]


def test_empty_or_foreign_volume_lacks_nothing(small: SmallVolume, command: Command) -> None:
    """Part of a cluster in a volume of its own: a tablespace, the WAL."""
    small.encrypt("000000010000000000000001", b"")
    small.encrypt("PG_15_202209061/5/16384", good_pages(1))
    small.encrypt("PG_15_202209061/5/PG_VERSION", b"15\n")
    assert findings(command, small) == {}


def retired(small: SmallVolume) -> None:
    """Make two clusters, the first of which pg_upgrade --link has retired."""
    for directory in ("15/", "18/"):
        small.cluster(directory)
    small.rename("15/global/pg_control", "15/global/pg_control.old")
    small.encrypt(f"15/{TABLE}", good_pages(2))


def test_cluster_that_pg_upgrade_has_retired_is_a_note_that_says_not_to_restore_it(
    small: SmallVolume, command: Command
) -> None:
    retired(small)
    code, output = command.run(verify, small.volume.backing, *UNLOCK)
    assert code == Exit.OK
    found = report(command, small)
    assert (found["findings"], found["unchecked"]) == ([], [])
    (note,) = found["notes"]
    assert note["path"] == "15/global/pg_control.old"
    assert "do not put pg_control back" in note["text"]
    assert "restore" not in output


def test_damage_in_a_retired_cluster_is_found_and_nobody_is_told_to_restore_it(
    small: SmallVolume, command: Command
) -> None:
    retired(small)
    for path in ("15/global/pg_control.old", "15/PG_VERSION", f"15/{TABLE}"):
        small.damage(path, 100)
    small.damage("18/PG_VERSION", 100)
    hints = {one["path"]: one["hint"] for one in report(command, small)["findings"]}
    assert len(hints) == 4
    assert "restore" in hints.pop("18/PG_VERSION")
    assert all("pg_upgrade has retired the cluster" in hint and "restore" not in hint for hint in hints.values())


def test_pages_of_a_retired_cluster_are_the_new_ones_and_judged_there(
    small: SmallVolume, command: Command
) -> None:
    """Both have them by hard links, and the new cluster may have switched its checksums off since."""
    retired(small)
    small.damage(f"15/{TABLE}", 8192 + 5000)
    assert findings(command, small) == {}


def test_lost_control_file_is_missed_though_there_is_another_one_beside_it(
    small: SmallVolume, command: Command
) -> None:
    retired(small)
    small.path("18/global/pg_control").unlink()
    assert list(findings(command, small)) == ["18/global/pg_control"]

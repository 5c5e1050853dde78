"""Verifying a tablespace or WAL without its cluster.

Covers tdefs/cli/common/home_cluster.py and tdefs/pg/home.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import verify
from tdefs.errors import Exit, TdefsError
from tests.support.offline_volumes import (
    KEY_COMMAND,
    SEGMENT_PAGES,
    Command,
    SmallVolume,
    control_file,
    good_pages,
)

TABLE = "PG_15_202209061/5/16384"
SEGMENT = "000000010000000000000001"
UNLOCK = ("--key-command", KEY_COMMAND)


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    """A plain data directory, as far as verifying a part of its cluster looks at it."""
    place = tmp_path / "pgdata"
    (place / "global").mkdir(parents=True)
    (place / "pg_tblspc").mkdir()
    (place / "pg_wal").mkdir()
    (place / "global/pg_control").write_bytes(control_file("pg15_checksums"))
    return place


@pytest.fixture
def tablespace(small: SmallVolume) -> SmallVolume:
    """A volume that is a tablespace, with one bit flipped in a page of a table."""
    small.encrypt(TABLE, good_pages(3))
    small.damage(TABLE, 8192 + 8192 + 5000)
    return small


def verified(command: Command, small: SmallVolume, *options: str | Path) -> tuple[int, Any]:
    code, output = command.run(verify, small.volume.backing, *UNLOCK, *options)
    found = command.json(verify, small.volume.backing, *UNLOCK, *options)
    for one in found["unchecked"]:
        assert (
            f"not checked: {one['path'] + ': ' if one['path'] else ''}{one['text']}\nHINT:  {one['hint']}"
            in output
        )
    return code, found


def refused(command: Command, small: SmallVolume, pgdata: Path) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        command.run(verify, small.volume.backing, *UNLOCK, "--pgdata", pgdata)
    assert caught.value.exit_code == Exit.USAGE
    assert caught.value.hint
    return caught.value


def assert_found(found: Any) -> None:
    (finding,) = found["findings"]
    assert finding["path"] == TABLE
    assert finding["blocks"] == [1]
    assert finding["error"].startswith("block 1: the page checksum does not match")
    assert (found["pages"], found["unchecked_pages"], found["unchecked"]) == (3, 0, [])


def test_pages_that_were_not_checked_have_an_exit_code_of_their_own(
    tablespace: SmallVolume, command: Command
) -> None:
    code, found = verified(command, tablespace)
    assert code == Exit.VERIFY_INCOMPLETE
    assert found["findings"] == []
    (unchecked,) = found["unchecked"]
    assert unchecked["text"].startswith("3 pages of relations, except their headers")
    assert "--pgdata" in unchecked["hint"]
    assert (found["pages"], found["unchecked_pages"]) == (0, 3)


def test_damage_counts_more_than_what_was_not_checked(tablespace: SmallVolume, command: Command) -> None:
    tablespace.damage(TABLE, 100)
    assert verified(command, tablespace)[0] == Exit.VERIFY_FOUND_DAMAGE


def test_volume_without_pages_or_wal_lacks_no_cluster(small: SmallVolume, command: Command) -> None:
    small.encrypt("some/file", b"content")
    code, found = verified(command, small)
    assert (code, found["unchecked"]) == (Exit.OK, [])


def test_named_data_directory_tells_of_the_checksums(
    tablespace: SmallVolume, command: Command, pgdata: Path
) -> None:
    code, found = verified(command, tablespace, "--pgdata", pgdata)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert_found(found)
    assert found["checksums"] == {"PG_15_202209061": "on"}
    assert found["notes"] == [
        {"path": "", "text": f'PG_15_202209061 is judged by the cluster in "{pgdata}"'},
    ]


def test_named_cluster_without_checksums_leaves_nothing_unchecked(
    tablespace: SmallVolume, command: Command, pgdata: Path
) -> None:
    (pgdata / "global/pg_control").write_bytes(control_file("pg15_no_checksums"))
    code, found = verified(command, tablespace, "--pgdata", pgdata)
    assert code == Exit.OK
    assert found["checksums"] == {"PG_15_202209061": "off"}
    assert (found["pages"], found["unchecked_pages"]) == (3, 0)


@pytest.mark.parametrize(("place", "named"), [("", ""), ("15/main/", ""), ("15/main/", "data/15/main")])
def test_named_backing_directory_is_unlocked(
    tablespace: SmallVolume, command: Command, tmp_path: Path, place: str, named: str
) -> None:
    cluster = SmallVolume(tmp_path / "cluster")
    cluster.cluster(place)
    code, found = verified(command, tablespace, "--pgdata", cluster.volume.backing / named)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert_found(found)


@pytest.mark.parametrize("mountpoint", [".", ".."], ids=["on the mount itself", "in a directory of the mount"])
def test_virtual_files_of_a_mount_do_not_make_it_a_backing_directory(
    tablespace: SmallVolume, command: Command, pgdata: Path, mountpoint: str
) -> None:
    (pgdata / mountpoint / ".tdefs").mkdir()
    (pgdata / mountpoint / ".tdefs" / "status.json").write_text("{}")
    code, found = verified(command, tablespace, "--pgdata", pgdata)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert_found(found)


def test_blocks_are_counted_by_the_segments_of_the_named_cluster(
    tablespace: SmallVolume, command: Command, pgdata: Path
) -> None:
    tablespace.encrypt(TABLE, good_pages(SEGMENT_PAGES))
    tablespace.encrypt(f"{TABLE}.1", good_pages(2, SEGMENT_PAGES))
    assert verified(command, tablespace, "--pgdata", pgdata)[0] == Exit.OK
    tablespace.damage(f"{TABLE}.1", 8192 + 8192 + 5000)
    assert verified(command, tablespace, "--pgdata", pgdata)[1]["findings"][0]["blocks"] == [SEGMENT_PAGES + 1]


def test_pages_of_another_major_version_stay_unchecked(
    tablespace: SmallVolume, command: Command, pgdata: Path
) -> None:
    """What pg_upgrade leaves of the old cluster in a tablespace, beside what is the new one's."""
    tablespace.encrypt("PG_14_202107181/5/16384", good_pages(2))
    tablespace.encrypt(TABLE, good_pages(3))
    code, found = verified(command, tablespace, "--pgdata", pgdata)
    assert code == Exit.VERIFY_INCOMPLETE
    assert (found["pages"], found["unchecked_pages"]) == (3, 2)
    assert [one["path"] for one in found["unchecked"]] == ["PG_14_202107181"]


def test_what_is_no_cluster_cannot_be_named(tablespace: SmallVolume, command: Command, pgdata: Path) -> None:
    assert "there is no cluster in" in refused(command, tablespace, pgdata / "base").message
    other = pgdata.parent / "other"
    pgdata.rename(pgdata.parent / "moved")
    for name in ("15", "16"):
        (other / name / "global").mkdir(parents=True)
        (other / name / "global/pg_control").write_bytes(control_file("pg15_checksums"))
    assert "there is more than one cluster in" in refused(command, tablespace, other).message
    (other / "15/global/pg_control").write_bytes(bytes(8192))
    assert "pg_control is damaged" in refused(command, tablespace, other / "15").message


def test_linking_cluster_is_found_in_what_the_configuration_names(
    tablespace: SmallVolume, command: Command, tmp_path: Path
) -> None:
    cluster = SmallVolume(tmp_path / "cluster")
    cluster.cluster("15/main/")
    cluster.link("15/main/pg_tblspc/16400", "/mnt/tablespace/first")
    tablespace.mounted_at("/mnt/tablespace", clean=True)
    config = tmp_path / "tdefs.yaml"
    text = f"version: 1\nvolumes:\n  {cluster.volume.backing}:\n    "
    config.write_text(f'{text}key_command: "{KEY_COMMAND}"\n')
    code, found = verified(command, tablespace, "--config", config)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert_found(found)
    # who would have to be asked is not asked
    config.write_text(f"{text}options: []\n")
    code, found = verified(command, tablespace, "--config", config)
    assert code == Exit.VERIFY_INCOMPLETE
    assert "the configuration does not say how to unlock its volume" in command.errors
    # a cluster that has nothing to do with it
    cluster.path("15/main/pg_tblspc/16400").unlink()
    cluster.link("15/main/pg_tblspc/16400", "/mnt/tablespace-2")
    config.write_text(f'{text}key_command: "{KEY_COMMAND}"\n')
    assert verified(command, tablespace, "--config", config)[0] == Exit.VERIFY_INCOMPLETE
    assert command.errors == ""


def test_tablespace_beside_its_cluster_is_judged_by_it(tablespace: SmallVolume, command: Command) -> None:
    """Both are in the volume, whose mount point is above them."""
    tablespace.path("PG_15_202209061").rename(tablespace.path("PG"))
    tablespace.path("spaces/fast").mkdir(parents=True)
    tablespace.path("PG").rename(tablespace.path("spaces/fast/PG_15_202209061"))
    tablespace.cluster("main/")
    link = tablespace.path("main/pg_tblspc/16400")
    tablespace.link("main/pg_tblspc/16400", "/elsewhere/fast")
    assert verified(command, tablespace)[0] == Exit.VERIFY_INCOMPLETE
    link.unlink()
    tablespace.link("main/pg_tblspc/16400", "/mnt/spaces/fast")
    code, found = verified(command, tablespace)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    (finding,) = found["findings"]
    assert (finding["path"], finding["blocks"]) == (f"spaces/fast/{TABLE}", [1])
    assert (found["unchecked"], found["checksums"]["spaces/fast/PG_15_202209061"]) == ([], "on")
    # what pg_upgrade has retired needs no check there either
    tablespace.rename("main/global/pg_control", "main/global/pg_control.old")
    code, found = verified(command, tablespace)
    assert (code, found["unchecked"]) == (Exit.OK, [])


def test_wal_without_its_cluster_is_said_to_be_unchecked(small: SmallVolume, command: Command) -> None:
    small.encrypt(SEGMENT, b"", length=16 << 20)
    code, found = verified(command, small)
    assert code == Exit.VERIFY_INCOMPLETE
    assert [one["text"] for one in found["unchecked"]] == [
        "1 WAL segment: it is unknown which of them recovery needs, and how long they must be"
    ]
    assert found["wal_files"] == 1


def test_wal_is_judged_by_the_cluster_whose_it_is(small: SmallVolume, command: Command, pgdata: Path) -> None:
    (pgdata / "pg_wal").rmdir()
    (pgdata / "pg_wal").symlink_to("/mnt/wal")
    small.encrypt(SEGMENT, b"", length=16 << 20)
    small.encrypt(f"archive_status/{SEGMENT}.done", b"")
    code, found = verified(command, small, "--pgdata", pgdata)
    assert (code, found["findings"]) == (Exit.OK, [])
    small.cut(SEGMENT, 8192 + (8 << 20))
    findings = verified(command, small, "--pgdata", pgdata)[1]["findings"]
    assert [(one["path"], one["error"]) for one in findings] == [
        (SEGMENT, f"a WAL segment has {16 << 20} bytes, not {8 << 20}")
    ]
    small.path(SEGMENT).rename(small.path("000000010000000000000007"))
    findings = verified(command, small, "--pgdata", pgdata)[1]["findings"]
    assert (SEGMENT, "the WAL segment is missing") in [(one["path"], one["error"]) for one in findings]
    (pgdata / "standby.signal").touch()
    findings = verified(command, small, "--pgdata", pgdata)[1]["findings"]
    assert SEGMENT not in [one["path"] for one in findings]


def test_wal_archive_of_a_cluster_lacks_nothing(small: SmallVolume, command: Command, pgdata: Path) -> None:
    """The cluster has its WAL in its data directory: what lies here are copies, of whatever age."""
    small.encrypt("archive/000000010000000000000009", b"", length=16 << 20)
    code, found = verified(command, small, "--pgdata", pgdata)
    assert (code, found["findings"]) == (Exit.OK, [])
    small.cluster("15/main/")
    code, found = verified(command, small)
    assert (code, found["findings"], found["unchecked"]) == (Exit.OK, [], [])


def test_cluster_on_a_mount_inside_this_one_is_not_asked_for(
    small: SmallVolume, command: Command, tmp_path: Path
) -> None:
    cluster = SmallVolume(tmp_path / "cluster")
    cluster.cluster()
    small.encrypt("file", b"content")
    small.mounted_at(str(tmp_path), clean=True)
    config = tmp_path / "tdefs.yaml"
    config.write_text(f'version: 1\nvolumes:\n  {cluster.volume.backing}:\n    key_command: "{KEY_COMMAND}"\n')
    code, found = verified(command, small, "--config", config)
    assert (code, found["findings"], found["notes"]) == (Exit.OK, [], [])

"""What somebody without the keys changes while a volume is at rest, by name, is refused, and told of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from errno import EIO
from pathlib import Path

import pytest

from tdefs.control import ask
from tdefs.errors import Exit
from tdefs.volume.description import read_volume
from tests.support.errnos import errno_of
from tests.support.volume import Volume

CONTENT = b"as it was left\n" * 1000
#: One of each kind; a lost log, statistics or temporary file keeps nobody down.
STATEMENTS = (
    *("standby.signal", "pg_hba.conf", "PG_VERSION", "global/pg_control", "global/pg_filenode.map"),
    *(
        "pg_wal/000000010000000000000001",
        "pg_xact/0000",
        "base/5/16385",
        "base/5/16385_fsm",
        "pg_twophase/00000300",
    ),
    *("pg_replslot/s/state", "backup_label", "any_other_file"),
)
DISPENSABLE = (
    "log/postgresql-Fri.log",
    "pg_stat/pgstat.stat",
    "base/pgsql_tmp/pgsql_tmp1.0",
    "base/5/pg_internal.init",
)
REMOVED, ADDED, EMPTIED = "removed", "added", "emptied"


@pytest.fixture
def left(volume: Volume) -> Iterator[Volume]:
    """A volume with files of every kind that was unmounted cleanly twice. No refusal may be blamed on the disk."""
    volume.mount()
    for name in (*STATEMENTS, *DISPENSABLE):
        path = volume.mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    (volume.mountpoint / "pg_tblspc").mkdir()
    (volume.mountpoint / "pg_tblspc/16400").symlink_to("/srv/other")
    volume.umount()
    volume.mount()
    volume.umount()
    yield volume
    assert "dmesg" not in volume.log.read_text()


def test_a_volume_that_nobody_touched_is_served_without_a_word(left: Volume) -> None:
    said = left.tdefs("mount", left.backing, left.mountpoint, *left.unlock, "--log-file", left.log)
    assert "warning" not in said.stderr
    assert left.tampering() == {}
    for name in (*STATEMENTS, *DISPENSABLE):
        assert (left.mountpoint / name).read_bytes() == CONTENT
    assert (left.mountpoint / "pg_tblspc/16400").readlink() == Path("/srv/other")
    left.umount()


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_removed_file_whose_absence_says_something_is_an_error(left: Volume, name: str) -> None:
    (left.data / name).unlink()
    left.mount()
    assert errno_of((left.mountpoint / name).stat) == EIO
    assert errno_of(lambda: (left.mountpoint / name).write_bytes(b"made anew")) == EIO
    assert left.tampering() == {name: REMOVED}
    assert f"{name}: not as the last unmount left it: removed" in left.log.read_text()
    left.umount()


@pytest.mark.parametrize("name", DISPENSABLE)
def test_a_lost_file_that_a_server_makes_anew_keeps_nobody_down(left: Volume, name: str) -> None:
    (left.data / name).unlink()
    left.mount()
    assert not (left.mountpoint / name).exists()
    assert left.tampering() == {name: REMOVED}
    (left.mountpoint / name).write_bytes(b"made anew")
    assert left.tampering() == {}
    left.umount()
    left.mount()
    assert (left.mountpoint / name).read_bytes() == b"made anew"
    assert left.tampering() == {}
    left.umount()


def test_a_lost_directory_of_logs_keeps_nobody_down(left: Volume) -> None:
    shutil.rmtree(left.data / "log")
    left.mount()
    (left.mountpoint / "log").mkdir()
    (left.mountpoint / "log/postgresql-Sat.log").write_bytes(CONTENT)
    left.umount()


def test_a_lost_directory_of_a_database_is_an_error(left: Volume) -> None:
    shutil.rmtree(left.data / "base/5")
    left.mount()
    assert errno_of((left.mountpoint / "base/5").stat) == EIO
    assert left.tampering()["base/5/16385"] == REMOVED
    left.umount()


@pytest.mark.parametrize("size", [0, 8192])
@pytest.mark.parametrize("name", ["pg_hba.conf", "pg_xact/0000", "base/5/16385"])
def test_an_emptied_file_is_refused_but_can_be_removed(left: Volume, name: str, size: int) -> None:
    os.truncate(left.data / name, size)
    left.mount()
    assert errno_of((left.mountpoint / name).read_bytes) == EIO
    assert errno_of(lambda: (left.mountpoint / name).write_bytes(b"over it")) == EIO
    assert left.tampering() == {name: EMPTIED}
    (left.mountpoint / name).unlink()
    (left.mountpoint / name).write_bytes(CONTENT)
    left.umount()
    left.mount()
    assert (left.mountpoint / name).read_bytes() == CONTENT
    assert left.tampering() == {}
    left.umount()


def test_a_cut_and_a_grown_file_are_refused(left: Volume) -> None:
    os.truncate(left.data / "pg_hba.conf", 8192 + 512)
    os.truncate(left.data / "base/5/16385", 8192 * 100)
    left.mount()
    for name in ("pg_hba.conf", "base/5/16385"):
        assert errno_of((left.mountpoint / name).read_bytes) == EIO
    assert left.tampering() == {"pg_hba.conf": "other length", "base/5/16385": "other length"}
    left.umount()


def test_an_older_file_of_the_same_length_is_refused_where_it_is_opened(left: Volume, tmp_path: Path) -> None:
    """Its header is its own, and valid: what only the manifest can tell."""
    name = "pg_hba.conf"
    shutil.copy(left.data / name, tmp_path / "older")
    left.mount()
    (left.mountpoint / "new").write_bytes(CONTENT[::-1])
    (left.mountpoint / "new").rename(left.mountpoint / name)
    left.umount()
    shutil.copy(tmp_path / "older", left.data / name)
    left.mount()
    assert left.tampering() == {}, "headers are read when files are opened"
    assert errno_of((left.mountpoint / name).read_bytes) == EIO
    assert left.tampering() == {name: "exchanged"}
    left.umount()
    left.mount()
    assert errno_of((left.mountpoint / name).read_bytes) == EIO, "a difference stays one until it is accepted"
    left.umount()


@pytest.mark.parametrize(
    "name", ["recovery.signal", "base/5/16399", "pg_wal/000000010000000000000009", "new/file"]
)
@pytest.mark.parametrize("empty", [True, False])
def test_an_added_file_is_refused_but_can_be_removed(left: Volume, name: str, *, empty: bool) -> None:
    path = left.data / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"" if empty else (left.data / "any_other_file").read_bytes())
    left.mount()
    assert left.tampering()[name] == ADDED
    assert errno_of((left.mountpoint / name).read_bytes) == EIO
    if name == "recovery.signal":
        assert errno_of((left.mountpoint / name).stat) == EIO, "its mere name makes PostgreSQL recover"
    else:
        (left.mountpoint / name).unlink()
        (left.mountpoint / name).write_bytes(CONTENT)
        assert name not in left.tampering()
    left.umount()


def test_another_link_is_refused_where_it_is_read(left: Volume) -> None:
    link = left.data / "pg_tblspc/16400"
    link.unlink()
    link.symlink_to("/srv/evil0")
    left.mount()
    assert errno_of((left.mountpoint / "pg_tblspc/16400").readlink) == EIO
    assert left.tampering() == {"pg_tblspc/16400": "other link"}
    left.umount()


@pytest.mark.parametrize("kind", ["directory", "link", "FIFO"])
def test_something_else_in_the_place_of_a_file_is_refused(left: Volume, kind: str) -> None:
    path = left.data / "pg_hba.conf"
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("PG_VERSION")
    else:
        os.mkfifo(path)
    left.mount()
    assert left.tampering() == {"pg_hba.conf": "other kind"}
    if kind != "FIFO":  # that would block who opens it; it is the kernel's, not the volume's
        assert errno_of(lambda: (left.mountpoint / "pg_hba.conf").read_bytes()) in (EIO, 21)
    left.umount()


def test_what_differs_stays_refused_after_a_clean_session(left: Volume) -> None:
    (left.data / "standby.signal").unlink()
    os.truncate(left.data / "pg_hba.conf", 0)
    (left.data / "planted.conf").touch()
    before = {"standby.signal": REMOVED, "pg_hba.conf": EMPTIED, "planted.conf": ADDED}
    for _ in range(2):
        left.mount()
        assert left.tampering() == before
        left.umount()


def test_what_differs_is_served_and_told_of_where_the_configuration_says_so(left: Volume) -> None:
    os.truncate(left.data / "pg_hba.conf", 0)
    (left.data / "standby.signal").unlink()
    config = left.root / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {left.backing}:\n    tampering: report\n")
    left.mount("--config", config)
    assert (left.mountpoint / "pg_hba.conf").read_bytes() == b""
    assert not (left.mountpoint / "standby.signal").exists()
    assert left.tampering() == {"standby.signal": REMOVED, "pg_hba.conf": EMPTIED}
    left.umount()


def test_who_mounts_is_told_of_what_differs(left: Volume) -> None:
    (left.data / "standby.signal").unlink()
    said = left.tdefs("mount", left.backing, left.mountpoint, *left.unlock, "--log-file", left.log)
    assert "1 file is not as the last unmount left things: standby.signal: removed" in said.stderr
    left.umount()


def test_a_mount_that_only_reads_refuses_and_writes_nothing(left: Volume) -> None:
    os.truncate(left.data / "pg_hba.conf", 0)
    before = {path.name: path.read_bytes() for path in (left.backing / ".tdefs").iterdir() if path.is_file()}
    left.mount("-o", "ro")
    assert errno_of((left.mountpoint / "pg_hba.conf").read_bytes) == EIO
    left.umount()
    assert before == {
        path.name: path.read_bytes() for path in (left.backing / ".tdefs").iterdir() if path.is_file()
    }


def warnings_of_mount(volume: Volume) -> str:
    said = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log)
    volume.umount()
    return said.stderr


def roll_back(volume: Volume, older: Path) -> None:
    """Gives every file the content that it has in an older copy, as who writes to the disk below can."""
    shutil.rmtree(volume.data)
    shutil.copytree(older / "data", volume.data, symlinks=True)
    for path in (older / ".tdefs").iterdir():
        if path.is_file():
            shutil.copy(path, volume.backing / ".tdefs" / path.name)


def test_an_older_copy_of_the_whole_directory_is_told_of_until_it_is_accepted(
    left: Volume, tmp_path: Path
) -> None:
    shutil.copytree(left.backing, tmp_path / "older", symlinks=True)
    left.mount()
    (left.mountpoint / "pg_hba.conf").write_bytes(b"the password was changed\n")
    left.umount()
    roll_back(left, tmp_path / "older")
    assert "an older copy" in warnings_of_mount(left)
    assert "an older copy" in warnings_of_mount(left), "a session on it makes it none the newer"
    found = left.tdefs("accept", "--list", "--volume", left.backing, *left.unlock, check=False)
    assert found.returncode == Exit.TAMPERING_FOUND
    assert "an older copy" in left.tdefs("verify", left.backing, *left.unlock, check=False).stdout
    left.tdefs("accept", "--volume", left.backing, "--older-copy", *left.unlock)
    assert warnings_of_mount(left) == ""


@pytest.mark.parametrize("how", ["removed", "altered", "of another volume"])
def test_a_manifest_that_is_gone_or_not_as_it_was_written_is_told_of(
    left: Volume, how: str, tmp_path: Path
) -> None:
    path = left.backing / ".tdefs/manifest"
    if how == "removed":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[30 if how == "altered" else 9] ^= 1
        path.write_bytes(data)
    said = warnings_of_mount(left)
    assert "the manifest of the volume's files" in said
    assert "the manifest of the volume's files" in warnings_of_mount(left)
    left.tdefs("accept", "--volume", left.backing, "--older-copy", *left.unlock)
    assert warnings_of_mount(left) == ""


def test_each_clean_unmount_has_its_counter_in_the_history(left: Volume) -> None:
    records = [json.loads(line) for line in Path(f"{left.keystore}.history").read_text().splitlines()]
    counters = [one["what"]["counter"] for one in records if one["event"] == "manifest"]
    assert counters == [1, 2]


def accept(volume: Volume, *words: str) -> str:
    return volume.tdefs("accept", "--volume", volume.backing, *volume.unlock, *words).stdout


def differ(volume: Volume) -> None:
    """One file of each kind of difference."""
    (volume.data / "standby.signal").unlink()
    os.truncate(volume.data / "pg_hba.conf", 0)
    (volume.data / "planted.conf").touch()
    shutil.copy(volume.data / "backup_label", volume.data / "any_other_file")


@pytest.mark.parametrize("mounted", [True, False])
def test_what_is_accepted_is_served_as_it_is(left: Volume, *, mounted: bool) -> None:
    differ(left)
    if mounted:
        left.mount()
        assert errno_of((left.mountpoint / "any_other_file").read_bytes) == EIO
        assert len(left.tampering()) == 4
    accept(left, "standby.signal", str(left.data / "pg_hba.conf"))
    if mounted:
        assert left.tampering() == {"planted.conf": ADDED, "any_other_file": "exchanged"}
        assert not (left.mountpoint / "standby.signal").exists()
        assert (left.mountpoint / "pg_hba.conf").read_bytes() == b""
        left.umount()
    found = left.tdefs("accept", "--list", "--json", "--volume", left.backing, *left.unlock, check=False)
    assert found.returncode == Exit.TAMPERING_FOUND
    paths = [one["path"] for one in json.loads(found.stdout)["differences"]]
    assert paths == ["any_other_file", "planted.conf"]
    accept(left, "--all")
    left.tdefs("accept", "--list", "--volume", left.backing, *left.unlock)
    left.mount()
    assert left.tampering() == {}
    assert (left.mountpoint / "planted.conf").read_bytes() == b""
    left.umount()


def test_accepting_needs_a_secret_and_a_difference(left: Volume) -> None:
    differ(left)
    wrong = left.tdefs(
        "accept", "--volume", left.backing, "--all", "--key-command", "echo " + "ab" * 32, check=False
    )
    assert wrong.returncode == Exit.WRONG_SECRET
    same = left.tdefs("accept", "--volume", left.backing, *left.unlock, "PG_VERSION", check=False)
    assert same.returncode == Exit.FILE_NOT_FOUND
    nothing = left.tdefs("accept", "--volume", left.backing, *left.unlock, check=False)
    assert nothing.returncode == Exit.USAGE
    left.mount()
    assert len(left.tampering()) == 3, "the exchanged file was not opened yet"
    left.umount()


def test_who_has_no_keys_accepts_nothing_through_the_control_socket(left: Volume) -> None:
    differ(left)
    left.mount()
    volume = read_volume(left.backing)
    for asked in ({}, {"paths": ["standby.signal"], "older_copy": False, "mac": "00" * 32}, {"paths": 7}):
        assert "refused" in (ask(volume, "accept", **asked) or {})
    assert "standby.signal" in left.tampering()
    left.umount()


def test_a_difference_is_accepted_after_a_crash_without_binding_what_the_crash_left(left: Volume) -> None:
    left.mount()
    (left.mountpoint / "base/5/16385").write_bytes(CONTENT * 2)
    (left.mountpoint / "base/5/17000").write_bytes(CONTENT)
    (left.mountpoint / "recovery.signal").touch()
    left.kill()
    os.truncate(left.data / "pg_hba.conf", 0)
    (left.data / "promote").touch()
    accept(left, "pg_hba.conf")
    os.truncate(left.data / "base/5/16385", 0)  # it was written to, so nobody can tell
    (left.data / "base/5/17000").unlink()
    left.mount()
    assert left.tampering() == {"promote": ADDED}, "its name is noted whenever it comes, also after a crash"
    assert (left.mountpoint / "recovery.signal").exists()
    assert (left.mountpoint / "pg_hba.conf").read_bytes() == b""
    left.umount()


def test_after_a_kill_the_log_says_which_files_lost_the_binding_and_the_others_keep_it(left: Volume) -> None:
    left.mount()
    with (left.mountpoint / "base/5/16385").open("ab") as file:
        file.write(CONTENT)
    with (left.mountpoint / "pg_hba.conf").open("r+b") as file:
        file.write(b"in place")
    (left.mountpoint / "any_other_file").rename(left.mountpoint / "renamed")
    left.kill()
    os.truncate(left.data / "pg_hba.conf", 0)
    left.mount()
    assert left.tampering() == {"pg_hba.conf": EMPTIED}
    assert "not bound by the manifest any more: any_other_file, base/5/16385\n" in left.log.read_text()
    assert (left.mountpoint / "renamed").read_bytes() == CONTENT
    left.umount()


def test_verify_and_doctor_name_what_differs(left: Volume) -> None:
    differ(left)
    found = json.loads(left.tdefs("verify", left.backing, *left.unlock, "--json", check=False).stdout)
    errors = {one["path"]: one["error"] for one in found["findings"] if "last unmount" in one["error"]}
    assert set(errors) == {"standby.signal", "pg_hba.conf", "planted.conf", "any_other_file"}
    left.mount()
    said = left.tdefs("doctor", left.mountpoint, check=False)
    assert said.returncode == Exit.DOCTOR_FOUND_RISKS
    assert "pg_hba.conf: emptied" in said.stdout
    left.umount()


def test_verify_of_tampering_alone_has_its_own_exit_code(volume: Volume) -> None:
    volume.mount()
    for name in ("pg_hba.conf", "standby.signal"):
        (volume.mountpoint / name).write_bytes(CONTENT)
    volume.umount()
    volume.tdefs("verify", volume.backing, *volume.unlock)
    (volume.data / "standby.signal").unlink()
    assert volume.tdefs("verify", volume.backing, *volume.unlock, check=False).returncode == Exit.TAMPERING_FOUND


def test_verify_of_a_mounted_volume_that_is_written_to_finds_nothing(left: Volume) -> None:
    left.mount()
    (left.mountpoint / "base/5/16385").write_bytes(CONTENT * 3)
    (left.mountpoint / "standby.signal").unlink()
    (left.mountpoint / "postgresql.conf").write_bytes(CONTENT)
    found = json.loads(left.tdefs("verify", left.backing, *left.unlock, "--json", check=False).stdout)
    assert not [one for one in found["findings"] if "last unmount" in one["error"]]
    left.umount()


def test_a_copy_that_the_keystore_does_not_know_never_counts(left: Volume, tmp_path: Path) -> None:
    shutil.copytree(left.backing, tmp_path / "copy", symlinks=True)
    history = Path(f"{left.keystore}.history")
    before = history.read_text().count('"event":"manifest"')
    place = tmp_path / "mnt"
    place.mkdir()
    left.tdefs("mount", tmp_path / "copy", place, *left.unlock, "--log-file", left.log)
    left.tdefs("umount", place)
    assert history.read_text().count('"event":"manifest"') == before


def test_a_full_disk_at_the_end_leaves_the_old_manifest_and_its_journal(small: Volume) -> None:
    for name in ("a", "b", "c"):
        (small.mountpoint / name).write_bytes(CONTENT)
    small.umount()
    small.mount()
    before = (small.backing / ".tdefs/manifest").read_bytes()
    (small.mountpoint / "b").unlink()
    with suppress(OSError), (small.mountpoint / "big").open("wb") as file:
        while True:
            file.write(bytes(range(256)) * 256)
            file.flush()
            os.fsync(file.fileno())
    (small.mountpoint / "c").unlink()
    small.umount()
    after = (small.backing / ".tdefs/manifest").read_bytes()
    small.mount()
    assert small.tampering() == {}
    if before == after:
        assert "the manifest could not be written" in small.log.read_text()
    (small.mountpoint / "big").unlink()

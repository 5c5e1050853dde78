"""What somebody does to a volume at rest so that the next mount looks less closely, or serves less of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from errno import EIO
from functools import partial

import pytest

from tests.fs.test_copies import copied
from tests.support.errnos import errno_of
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CONTENT = b"as it was left\n" * 1000
NAMES = (
    *("pg_hba.conf", "conf.d/settings", "pg_twophase/00000300", "pg_replslot/s/state", "any_other_file"),
    *("pg_wal/000000010000000000000001", "log/postgresql-Fri.log", "backup_label"),
)


@pytest.fixture
def left(volume: Volume) -> Volume:
    """A volume with files of several kinds, and a FIFO, that was unmounted cleanly."""
    volume.mount()
    for name in NAMES:
        path = volume.mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    (volume.mountpoint / "pg_tblspc").mkdir()
    (volume.mountpoint / "pg_tblspc/16400").symlink_to("/srv/other")
    os.mkfifo(volume.mountpoint / "pipe")
    volume.umount()
    return volume


def warnings_of_mount(volume: Volume) -> str:
    said = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log)
    volume.umount()
    return said.stderr


def test_the_manifest_of_another_volume_of_the_keystore_is_none(left: Volume, scratch: Workspace) -> None:
    """Two volumes with one keystore have one volume id, and the same keys."""
    copy = copied(scratch, left)
    copy.tdefs("volume", "add", copy.backing, *copy.unlock)
    assert warnings_of_mount(copy) == "", "what the copy brought with it is its own from now on"
    copy.mount()
    (copy.mountpoint / "pg_hba.conf").unlink()
    copy.umount()
    (left.data / "pg_hba.conf").unlink()
    shutil.copy(copy.backing / ".tdefs/manifest", left.backing / ".tdefs/manifest")
    assert "is that of volume vol_2, and this is vol_1" in warnings_of_mount(left)


def test_an_older_copy_at_another_place_is_told_of(left: Volume, scratch: Workspace) -> None:
    """Else who puts a snapshot under another inode number would not be noticed, where one in place is."""
    copy = copied(scratch, left)
    left.mount()
    (left.mountpoint / "pg_hba.conf").write_bytes(b"the password was changed\n")
    left.umount()
    assert "an older copy" in warnings_of_mount(copy)


@pytest.mark.parametrize("how", ["moved", "copied", "add"])
def test_a_copy_that_is_meant_keeps_its_manifest(left: Volume, scratch: Workspace, how: str) -> None:
    copy = copied(scratch, left)
    (copy.data / "pg_hba.conf").unlink()
    if how == "moved":
        left.backing.rename(left.root / "away")
    elif how == "copied":
        copy.keystore = copy.root / "its own"
    words = ("--keystore", copy.keystore) if how == "copied" else ()
    copy.tdefs("volume", how, copy.backing, *words, *copy.unlock)
    copy.mount()
    assert copy.tampering() == {"pg_hba.conf": "removed"}
    assert "the manifest of the volume's files" not in copy.log.read_text()
    copy.umount()


def test_a_copy_that_came_to_be_known_while_it_was_mounted_keeps_its_manifest(
    left: Volume, scratch: Workspace
) -> None:
    copy = copied(scratch, left)
    copy.mount()
    copy.tdefs("volume", "add", copy.backing, *copy.unlock)
    copy.umount()
    assert warnings_of_mount(copy) == ""


@pytest.mark.parametrize("setting", ["refuse", "report"])
def test_a_wiped_header_is_no_crash_to_a_mount_that_only_reads(left: Volume, setting: str) -> None:
    left.mount()
    left.kill()
    with (left.data / "pg_hba.conf").open("r+b") as file:
        file.write(bytes(8192))
    config = left.root / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {left.backing}:\n    tampering: {setting}\n")
    left.mount("-o", "ro", "--config", config)
    assert errno_of((left.mountpoint / "pg_hba.conf").read_bytes) == EIO
    left.umount()


def test_after_a_crash_what_is_found_by_its_name_is_still_told_of(left: Volume) -> None:
    """Older versions of files that were removed since are valid, and would be put back into effect."""
    older = left.root / "older"
    shutil.copytree(left.data, older, symlinks=True)
    left.mount()
    gone = ("conf.d/settings", "pg_twophase/00000300", "backup_label")
    for name in gone:
        (left.mountpoint / name).unlink()
    left.umount()
    left.mount()
    (left.mountpoint / "conf.d/added").write_bytes(CONTENT)
    (left.mountpoint / "new").mkdir()
    (left.mountpoint / "new/one").write_bytes(CONTENT)
    (left.mountpoint / "new").rename(left.mountpoint / "conf.d/conf.d")
    left.kill()
    for name in gone:
        shutil.copy(older / name, left.data / name)
    left.mount()
    assert left.tampering() == dict.fromkeys(gone, "added")
    for name in gone:
        assert errno_of((left.mountpoint / name).read_bytes) == EIO
    for name in ("conf.d/added", "conf.d/conf.d/one"):
        assert (left.mountpoint / name).read_bytes() == CONTENT
    left.umount()


def test_what_differs_gets_no_other_name(left: Volume) -> None:
    """Under another one nobody could tell that it is not what was left."""
    (left.data / "sub").mkdir()
    shutil.move(left.data / "any_other_file", left.data / "sub/planted")
    left.mount()
    planted = left.mountpoint / "sub/planted"
    for new in (left.mountpoint / "any_other_file", left.mountpoint / "elsewhere"):
        assert errno_of(partial(planted.rename, new)) == EIO
        assert errno_of(partial(new.hardlink_to, planted)) == EIO
    assert errno_of(lambda: (left.mountpoint / "sub").rename(left.mountpoint / "other")) == EIO
    (left.mountpoint / "sub/planted").unlink()
    left.umount()


@pytest.mark.parametrize("name", ["pg_hba.conf", "any_other_file"])
def test_a_fifo_of_the_volume_in_the_place_of_a_file_is_refused_and_not_waited_for(
    left: Volume, name: str
) -> None:
    shutil.copy(left.data / "pipe", left.data / name)
    left.mount()
    assert stat.S_ISFIFO((left.mountpoint / "pipe").stat().st_mode)
    assert stat.S_ISREG((left.mountpoint / name).stat().st_mode)
    assert errno_of(lambda: os.open(left.mountpoint / name, os.O_RDONLY | os.O_NONBLOCK)) == EIO
    left.umount()


def test_no_fifo_lies_where_postgresql_opens_a_file(left: Volume) -> None:
    """After a crash the manifest may not bind the file."""
    left.mount()
    (left.mountpoint / "pg_hba.conf").write_bytes(b"anew")
    assert errno_of(lambda: os.mkfifo(left.mountpoint / "postgresql.conf")) is not None
    left.kill()
    shutil.copy(left.data / "pipe", left.data / "pg_hba.conf")
    left.mount()
    assert errno_of(lambda: os.open(left.mountpoint / "pg_hba.conf", os.O_RDONLY | os.O_NONBLOCK)) == EIO
    left.umount()


def test_a_planted_copy_keeps_nobody_from_the_file_itself(left: Volume) -> None:
    copies = {
        "log/postgresql-Fri.log": "log/another.log",
        "pg_wal/000000010000000000000001": "pg_wal/000000010000000000000002",
    }
    for name, copy in copies.items():
        shutil.copy(left.data / name, left.data / copy)
    left.mount()
    for name, copy in copies.items():
        assert errno_of((left.mountpoint / copy).read_bytes) == EIO
        assert (left.mountpoint / name).read_bytes() == CONTENT
    left.umount()


def test_what_is_found_by_reading_a_directory_is_listed_when_it_was_removed(left: Volume) -> None:
    """Else a prepared transaction, a slot or a tablespace would be forgotten without a word."""
    gone = ("pg_twophase/00000300", "pg_tblspc/16400", "pg_replslot/s/state")
    for name in gone:
        (left.data / name).unlink()
    left.mount()
    for name in gone:
        path = left.mountpoint / name
        assert path.name in os.listdir(path.parent)
        assert errno_of(path.lstat) == EIO
    left.tdefs("accept", "--volume", left.backing, "--all", *left.unlock)
    for name in gone:
        assert (left.mountpoint / name).name not in os.listdir((left.mountpoint / name).parent)
    left.umount()


RECORDS = (
    ".tdefs/manifest",
    ".tdefs/changed",
    "../keystore.history",
    "../keystore.history.head",
)


@pytest.mark.parametrize("how", ["huge", "fifo", "directory", "link", "hard link"])
def test_whatever_lies_in_the_place_of_records_the_files_are_served(left: Volume, how: str) -> None:
    victims = []
    for number, name in enumerate(RECORDS):
        path, victim = left.backing / name, left.root / f"victim{number}"
        victim.write_bytes(b"of somebody else")
        victims.append(victim)
        if how == "huge":
            os.truncate(path, 1 << 40)
            continue
        path.unlink()
        if how == "fifo":
            os.mkfifo(path)
        elif how == "directory":
            path.mkdir()
        elif how == "link":
            path.symlink_to(victim)
        else:
            path.hardlink_to(victim)
    left.mount()
    assert (left.mountpoint / "pg_hba.conf").read_bytes() == CONTENT
    (left.mountpoint / "pg_hba.conf").write_bytes(b"anew")
    left.umount()
    assert {victim.read_bytes() for victim in victims} == {b"of somebody else"}


def test_a_tree_of_thousands_of_levels_keeps_no_command_busy(left: Volume) -> None:
    fd = os.open(left.data, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        left.mount()
        assert left.tampering()["d"] == "added"
        left.kill()
        left.mount()
        left.umount()
        assert "pg_hba.conf" in left.tdefs("ls", left.backing, check=False).stdout
        assert "nested too deeply" in left.tdefs("verify", left.backing, *left.unlock, check=False).stdout
    finally:
        subprocess.run(["rm", "-rf", left.data / "d"], check=True)

"""The virtual files in ``.tdefs``: what they hold, who may read them, and that nothing else sees or changes them.

Covers tdefs/fuse/virtual.py and tdefs/daemon/virtual_files.py.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import Volume
from tests.support.workspace import Workspace

#: What changes from one moment to the next.
MOVING = {"requests", "bytes", "latency", "known_inodes", "open_handles", "failures"}


@pytest.fixture(scope="module")
def mounted(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume of the account with two files in it."""
    volume = workspace.volume("virtual")
    volume.init()
    volume.mount(owner=workspace.account)
    (volume.mountpoint / "PG_VERSION").write_text("15\n")
    (volume.mountpoint / "base").mkdir()
    (volume.mountpoint / "base/1").write_text("one")
    yield volume
    volume.umount()
    workspace.volumes.remove(volume)


def errno_of(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def status_in(volume: Volume) -> dict[str, Any]:
    return dict(json.loads((volume.mountpoint / ".tdefs/status.json").read_bytes()))


def test_the_file_holds_what_the_command_prints(mounted: Volume) -> None:
    printed = mounted.status()
    found = status_in(mounted)
    assert list(found) == list(printed)
    assert {name: found[name] for name in found.keys() - MOVING} == {
        name: printed[name] for name in printed.keys() - MOVING
    }
    assert found["files"]["encrypted"] == 2
    assert found["requests"]["create"] >= 2
    assert found["latency"]["create"]["buckets"]


def test_a_reader_sees_the_state_of_when_it_opened_the_file(mounted: Volume) -> None:
    fd = os.open(mounted.mountpoint / ".tdefs/status.json", os.O_RDONLY)
    try:
        first = os.pread(fd, 100, 0)
        (mounted.mountpoint / "base/1").read_text()
        rest = b""
        while piece := os.pread(fd, 100, len(first) + len(rest)):
            rest += piece
        json.loads(first + rest)
        assert os.pread(fd, 1 << 20, 0) == first + rest
        assert os.fstat(fd).st_size == 0, "a reader would stop there"
    finally:
        os.close(fd)


def test_it_belongs_to_the_owner_of_the_root_alone(mounted: Volume) -> None:
    owner = mounted.mountpoint.stat()
    directory, file = mounted.mountpoint / ".tdefs", mounted.mountpoint / ".tdefs/status.json"
    assert (stat.S_IMODE(directory.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o500, 0o400)
    for place in (directory, file):
        assert (place.stat().st_uid, place.stat().st_gid) == (owner.st_uid, owner.st_gid)
    assert os.listdir(directory) == ["status.json"]


@needs_root
def test_its_owner_may_read_it_and_others_may_not(mounted: Volume, workspace: Workspace) -> None:
    file = mounted.mountpoint / ".tdefs/status.json"
    assert in_child(lambda: json.loads(file.read_text())["daemon_answers"], uid=workspace.account.uid)
    mounted.mountpoint.chmod(0o755)
    try:
        for place in (file, file.parent):
            refused = partial(errno_of, partial(os.open, place, os.O_RDONLY))
            assert in_child(refused, uid=NOBODY) == errno.EACCES
    finally:
        mounted.mountpoint.chmod(0o700)


def test_it_is_not_listed_and_no_program_that_copies_or_looks_for_files_sees_it(
    mounted: Volume, tmp_path: Path
) -> None:
    point = mounted.mountpoint
    assert (point / ".tdefs").is_dir()
    assert sorted(os.listdir(point)) == ["PG_VERSION", "base"]
    found = subprocess.run(["find", point], capture_output=True, text=True, check=True).stdout
    assert ".tdefs" not in found
    archive = tmp_path / "archive.tar"
    subprocess.run(["tar", "-C", point, "-cf", archive, "."], check=True)
    with tarfile.open(archive) as packed:
        listed = " ".join(packed.getnames())
    assert "PG_VERSION" in listed
    assert ".tdefs" not in listed
    subprocess.run(["cp", "-a", f"{point}/.", tmp_path / "copy"], check=True)
    assert sorted(os.listdir(tmp_path / "copy")) == ["PG_VERSION", "base"]
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-a", f"{point}/", tmp_path / "synced"], check=True)
        assert sorted(os.listdir(tmp_path / "synced")) == ["PG_VERSION", "base"]
    assert not (mounted.data / ".tdefs").exists()


def test_nothing_in_it_can_be_changed_or_made(mounted: Volume) -> None:
    point = mounted.mountpoint
    directory, file = point / ".tdefs", point / ".tdefs/status.json"
    (point / "moved").mkdir()
    expected = errno.EPERM if os.geteuid() == 0 else errno.EACCES
    for action in (
        (directory / "new").touch,
        (directory / "new").mkdir,
        lambda: (directory / "new").symlink_to("target"),
        lambda: os.link(point / "PG_VERSION", directory / "new"),
        lambda: (point / "PG_VERSION").rename(directory / "new"),
        lambda: file.rename(point / "taken"),
        file.unlink,
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_RDWR | os.O_TRUNC),
    ):
        assert errno_of(action) == expected
    for action in (
        directory.rmdir,
        lambda: directory.rename(point / "taken"),
        lambda: (point / "moved").rename(directory),
        lambda: directory.chmod(0o700),
        lambda: file.chmod(0o600),
        lambda: os.utime(file, (1, 1)),
        lambda: os.truncate(directory, 0),
        lambda: os.link(file, point / "taken"),
    ):
        assert errno_of(action) in (errno.EPERM, errno.EISDIR, errno.EACCES)
    for action in ((point / ".tdefs").mkdir, lambda: os.symlink("x", point / ".tdefs")):
        assert errno_of(action) == errno.EEXIST
    (point / "moved").rmdir()
    assert sorted(os.listdir(point)) == ["PG_VERSION", "base"]
    assert status_in(mounted)["daemon_answers"]


def test_the_name_is_an_ordinary_one_elsewhere(mounted: Volume) -> None:
    place = mounted.mountpoint / "base/.tdefs"
    place.mkdir()
    (place / "file").write_text("mine")
    assert os.listdir(place) == ["file"]
    shutil.rmtree(place)


def test_syncs_of_files_still_reach_the_disk_after_one_of_a_virtual_file(mounted: Volume) -> None:
    for place in (".tdefs", ".tdefs/status.json"):
        fd = os.open(mounted.mountpoint / place, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    before = mounted.status()["requests"]["fsync"]
    fd = os.open(mounted.mountpoint / "base/1", os.O_WRONLY)
    os.write(fd, b"two")
    os.fsync(fd)
    os.close(fd)
    assert mounted.status()["requests"]["fsync"] == before + 1


def test_everything_in_a_mount_can_be_removed(volume: Volume) -> None:
    volume.mount()
    point = volume.mountpoint
    (point / "base").mkdir()
    (point / "base/1").write_text("one")
    assert (point / ".tdefs/status.json").read_text()
    subprocess.run(["find", point, "-mindepth", "1", "-delete"], check=True)
    assert os.listdir(point) == []
    assert status_in(volume)["files"]["encrypted"] == 0
    volume.umount()
    assert volume.complaints() == []


def test_it_is_there_in_a_mount_that_is_only_read(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_text("one")
    volume.umount()
    volume.mount("-o", "ro")
    assert status_in(volume)["read_only"] is True
    assert errno_of((volume.mountpoint / ".tdefs/new").touch) == errno.EROFS
    assert os.listdir(volume.mountpoint) == ["file"]
    volume.umount()


def test_a_file_of_this_name_in_the_volume_is_not_lost(volume: Volume) -> None:
    """It was put there below the mount, which shows the virtual files; the log names it."""
    (volume.data / ".tdefs").mkdir()
    (volume.data / ".tdefs/file").write_text("mine")
    volume.mount(*volume.reporting)
    assert os.listdir(volume.mountpoint) == []
    assert os.listdir(volume.mountpoint / ".tdefs") == ["status.json"]
    assert any('the volume holds a ".tdefs" of its own' in line for line in volume.complaints())
    volume.umount()
    assert (volume.data / ".tdefs/file").read_text() == "mine"

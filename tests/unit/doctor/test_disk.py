"""The doctor finds a disk that may forget what was synced: on real mounts, and in what sysfs tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdefs.doctor import disk
from tdefs.doctor.disk import examine_disk, mount_of
from tdefs.doctor.findings import Level
from tdefs.mounts.table import MountInfo
from tests.support.children import needs_root

DEVICE = "259:1"


@contextmanager
def mounted(point: Path, *words: str | Path) -> Iterator[Path]:
    """A real file system for the time of a test."""
    point.mkdir()
    subprocess.run(["mount", *map(str, words), str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def risks(path: Path) -> list[str]:
    found = list(examine_disk(path))
    assert {finding.level for finding in found} <= {Level.RISK}
    return [finding.what for finding in found]


@needs_root
def test_memory_is_no_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt", "-t", "tmpfs", "none") as point:
        (point / "below").mkdir()
        [what] = risks(point / "below")
        assert "is on tmpfs: it is gone when the host stops" in what
        # nor is an image of a disk that lies in memory
        image = point / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
        with mounted(tmp_path / "image", "-o", "loop", image) as above:
            [what] = risks(above)
            assert "is on tmpfs" in what


@needs_root
def test_a_disk_without_barriers_forgets(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(image)], check=True)
    with mounted(tmp_path / "with", "-o", "loop", image) as point:
        assert risks(point) == []
    with mounted(tmp_path / "without", "-o", "loop,barrier=0", image) as point:
        [what] = risks(point)
        assert "is mounted with nobarrier" in what


@needs_root
def test_an_overlay_goes_with_its_container(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    options = ",".join(f"{name}dir={tmp_path / name}" for name in ("lower", "upper", "work"))
    with mounted(tmp_path / "mnt", "-t", "overlay", "none", "-o", options) as point:
        [what] = risks(point)
        assert "is on an overlay" in what


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel tells of a disk with a partition on which the backing directory lies."""
    mount = MountInfo(DEVICE, Path("/"), "ext4", "/dev/sda1", frozenset({"rw"}))
    monkeypatch.setattr(disk, "all_mounts", lambda: iter([mount]))
    for name, text in {
        "block/sda/queue/write_cache": "write back\n",
        "block/sda/device/scsi_disk/0:0:0:0/cache_type": "write back\n",
        "block/sda/sda1/partition": "1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "dev" / "block").mkdir(parents=True)
    (tmp_path / "dev" / "block" / DEVICE).symlink_to("../../block/sda/sda1")
    return tmp_path


def test_a_write_cache_that_is_flushed_is_right(sysfs: Path) -> None:
    assert list(examine_disk(Path("/"), sysfs)) == []


def test_a_write_cache_that_nobody_flushes_is_a_risk(sysfs: Path) -> None:
    (sysfs / "block/sda/queue/write_cache").write_text("write through\n")
    [finding] = examine_disk(Path("/"), sysfs)
    assert "sda has a write cache, and the kernel does not flush it" in finding.what
    # also below a volume manager
    (sysfs / "dev" / "block" / DEVICE).unlink()
    slaves = sysfs / "block" / "dm-0" / "slaves"
    slaves.mkdir(parents=True)
    (slaves / "sda1").symlink_to("../../sda/sda1")
    (sysfs / "dev" / "block" / DEVICE).symlink_to("../../block/dm-0")
    assert list(examine_disk(Path("/"), sysfs)) == [finding]
    # a disk that has no cache need not be flushed
    (sysfs / "block/sda/device/scsi_disk/0:0:0:0/cache_type").write_text("write through\n")
    assert list(examine_disk(Path("/"), sysfs)) == []


@pytest.mark.parametrize("name", ["ram0", "zram1"])
def test_a_disk_of_memory_is_a_risk(sysfs: Path, name: str) -> None:
    (sysfs / "dev" / "block" / DEVICE).unlink()
    (sysfs / "block" / name).mkdir()
    (sysfs / "dev" / "block" / DEVICE).symlink_to(f"../../block/{name}")
    [finding] = examine_disk(Path("/"), sysfs)
    assert f"{name}, which is memory" in finding.what


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("nfs4", {"rw"}, "not known here"),
        ("ext4", {"rw", "nobarrier"}, "nobarrier"),
        ("f2fs", {"fsync_mode=nobarrier"}, "fsync_mode=nobarrier"),
    ],
)
def test_what_the_kernels_list_of_mounts_says_is_judged(
    kind: str, options: set[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = MountInfo("0:0", Path("/"), kind, "anything", frozenset(options))
    monkeypatch.setattr(disk, "all_mounts", lambda: iter([mount]))
    [what] = risks(Path("/"))
    assert said in what


def test_the_mount_of_a_path_is_the_nearest_above() -> None:
    found = mount_of(Path("/proc/self"))
    assert found
    assert found.kind == "proc"
    found = mount_of(Path(os.sep))
    assert found
    assert found.mountpoint == Path("/")

"""What the kernel has forgotten, tdefs forgets, too: also a file that it keeps open for the next program.

Covers tdefs/tree/opening.py and tdefs/tree/unsynced_names.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.caches import drop_caches
from tests.support.children import needs_root
from tests.support.processes import wait_until
from tests.support.volume import Volume


def make(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")


@needs_root
def test_a_file_in_a_directory_that_was_forgotten_and_moved_can_be_synced(volume: Volume) -> None:
    volume.mount()
    mount = volume.mountpoint
    make(mount / "one/moved/file")
    (mount / "other").mkdir()
    os.sync()
    drop_caches(2)
    assert wait_until(lambda: volume.status()["known_inodes"] == 1, 20)
    (mount / "one/moved").rename(mount / "other/moved")
    with (mount / "other/moved/file").open("r+b") as file:
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())
    assert volume.complaints() == []


@needs_root
def test_nothing_but_the_root_is_known_when_the_kernel_has_forgotten_everything(volume: Volume) -> None:
    volume.mount()
    mount = volume.mountpoint
    for number in range(20):
        make(mount / f"directory{number}/file")
        (mount / f"directory{number}/link").symlink_to("file")
        os.link(mount / f"directory{number}/file", mount / f"directory{number}/name")
        os.mkfifo(mount / f"directory{number}/fifo")
        assert not (mount / f"directory{number}/missing").exists()
        (mount / f"directory{number}/file").rename(mount / f"directory{number}/new")
        (mount / f"directory{number}/link").rename(mount / f"link{number}")
    (mount / "directory0/new").unlink()
    assert sum(len(files) for _, _, files in os.walk(mount)) == 20 * 4 - 1
    os.sync()
    drop_caches(2)
    assert wait_until(lambda: volume.status()["known_inodes"] == 1, 20)
    assert volume.status()["open_handles"] == 0
    assert volume.complaints() == []

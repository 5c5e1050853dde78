"""Links and nodes through a real mount: the kernel sees what it made, whatever becomes of it below."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from tests.fs.libc import renameat2
from tests.support.children import in_child, needs_root
from tests.support.volume import Volume

NOBODY = 65534
RENAME_EXCHANGE = 2


def readlink(path: Path) -> str:
    return str(path.readlink())


def test_links_live_on_across_renames_and_mounts(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    (root / "d/e").mkdir(parents=True)
    (root / "other").mkdir()
    (root / "d/e/link").symlink_to("../target")
    number = (root / "d/e/link").lstat().st_ino
    assert (root / "d/e/link").lstat().st_size == len("../target")
    (root / "d").rename(root / "other/d")
    assert readlink(root / "other/d/e/link") == "../target"
    (root / "other/d/e/link").rename(root / "moved")
    assert ((root / "moved").lstat().st_ino, readlink(root / "moved")) == (number, "../target")
    (root / "second").symlink_to("elsewhere")
    renameat2(root / "moved", root / "second", RENAME_EXCHANGE)
    assert (readlink(root / "moved"), readlink(root / "second")) == ("elsewhere", "../target")
    # another file gets the number that the link had below
    for name in range(20):
        (root / f"file{name}").write_bytes(b"1")
    assert readlink(root / "moved") == "elsewhere"
    assert len({path.lstat().st_ino for path in root.iterdir()}) == len(list(root.iterdir()))
    volume.umount()
    assert list((volume.backing / ".tdefs/staging").iterdir()) == []
    volume.mount()
    assert (readlink(root / "moved"), readlink(root / "second")) == ("elsewhere", "../target")
    assert volume.complaints() == []


def test_a_hard_link_of_a_link_has_one_name(volume: Volume) -> None:
    volume.mount()
    one, two = volume.mountpoint / "one", volume.mountpoint / "two"
    one.symlink_to("target")
    os.utime(one, (1, 2), follow_symlinks=False)
    os.link(one, two, follow_symlinks=False)
    assert (readlink(two), two.lstat().st_mtime) == ("target", 2)
    one.unlink()
    assert readlink(two) == "target"
    volume.umount()
    volume.mount()
    assert (readlink(two), two.lstat().st_nlink) == ("target", 1)


@needs_root
def test_a_link_belongs_to_who_made_it_and_stays_so(volume: Volume) -> None:
    volume.mount()
    volume.mountpoint.chmod(0o777)
    link = volume.mountpoint / "link"
    in_child(lambda: link.symlink_to("target"), uid=NOBODY)
    assert link.lstat().st_uid == NOBODY
    os.chown(link, 1234, 4321, follow_symlinks=False)
    os.utime(link, ns=(10**18, 10**18 + 5), follow_symlinks=False)
    link.rename(volume.mountpoint / "moved")
    volume.umount()
    volume.mount()
    status = (volume.mountpoint / "moved").lstat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (1234, 4321, 10**18 + 5)


@needs_root
def test_fifos_sockets_and_devices_are_what_they_are(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(root / "socket"))
    # read and written through the kernel, as on every file system
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((root / "fifo").read_bytes()))
    reader.start()
    (root / "fifo").write_bytes(b"through")
    reader.join(10)
    assert got == [b"through"]

    def seen() -> dict[str, tuple[str, int, int]]:
        entries = {entry.name: entry for entry in os.scandir(root)}
        return {
            name: (
                stat.filemode((root / name).lstat().st_mode),
                (root / name).lstat().st_rdev,
                entries[name].stat(follow_symlinks=False).st_size,
            )
            for name in ("fifo", "null", "socket")
        }

    before = seen()
    assert before["fifo"] == ("prw-r-----", 0, 0)
    assert before["null"] == ("crw-------", os.makedev(1, 3), 0)
    assert before["socket"][0][0] == "s"
    assert all(stat.S_ISREG((volume.data / name).lstat().st_mode) for name in before)
    os.link(root / "fifo", root / "second")
    assert (root / "fifo").lstat().st_nlink == 2
    (root / "second").unlink()
    (root / "null").chmod(0o606)
    os.chown(root / "null", 12, 34)
    volume.umount()
    volume.mount()
    assert seen() == before | {"null": ("crw----rw-", os.makedev(1, 3), 0)}
    assert (root / "null").lstat().st_uid == 12
    (root / "fifo").rename(root / "renamed")
    for name in ("renamed", "null", "socket"):
        (root / name).unlink()
    assert list(root.iterdir()) == []
    assert volume.complaints() == []


def test_what_a_crash_left_in_staging_is_removed_by_the_next_mount_alone(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "link").symlink_to("target")
    volume.kill()
    staging = volume.backing / ".tdefs/staging"
    (staging / "7.0123abcd").symlink_to("tdefs:2:left")
    volume.discard()
    volume.mount("-o", "ro")
    assert readlink(volume.mountpoint / "link") == "target"
    assert len(list(staging.iterdir())) == 1
    with pytest.raises(OSError, match="Read-only"):
        (volume.mountpoint / "link").rename(volume.mountpoint / "x")
    volume.umount()
    volume.mount()
    assert list(staging.iterdir()) == []
    assert readlink(volume.mountpoint / "link") == "target"


def test_the_listing_of_a_mounted_volume_tells_where_links_lead_to_without_a_secret(volume: Volume) -> None:
    """The daemon has the keys, and this user may ask it; of a volume that rests they stay sealed."""
    volume.mount()
    (volume.mountpoint / "link").symlink_to("/srv/space")
    mounted = {one["path"]: one for one in json.loads(volume.tdefs("ls", volume.backing, "--json").stdout)}
    assert mounted["link"]["target"] == "/srv/space"
    assert mounted["link"]["leads_out"]
    volume.umount()
    (at_rest,) = json.loads(volume.tdefs("ls", volume.backing, "--json").stdout)
    assert at_rest["target"] is None

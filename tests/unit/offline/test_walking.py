"""Which files of a volume are seen, and that nothing of it is written. Covers tdefs/offline/walking.py."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tdefs.cli.common.place import volume_at
from tdefs.data.forms import Empty, Encrypted, Plain
from tdefs.errors import Exit, TdefsError
from tdefs.format.errors import FormatError, MissingHeader
from tdefs.offline.describing import DAMAGED, EMPTY, ENCRYPTED, PLAIN, describe, describe_all
from tdefs.offline.reader import CHUNK_SIZE
from tdefs.offline.walking import walk
from tests.support.offline_volumes import SmallVolume

STRAY = os.fsdecode(b"base/5/16384\xff")


def paths(small: SmallVolume) -> list[str]:
    return [path for path, _ in walk(small.volume)]


def read(small: SmallVolume, path: str) -> bytes:
    with small.reader().open(path) as file:
        return b"".join(file.chunks())


def test_every_regular_file_is_seen_and_nothing_else(small: SmallVolume, tmp_path: Path) -> None:
    for path in ("PG_VERSION", "base/5/1259", "base/5/16384.1", "pg_tblspc/.tdefs/file", "base-2"):
        small.encrypt(path, b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    small.path("pg_tblspc/16400").symlink_to(outside)
    small.path("link").symlink_to(small.volume.data / "PG_VERSION")
    os.mkfifo(small.path("fifo"))
    with socket.socket(socket.AF_UNIX) as server:
        # by a short way: the name of a socket has 107 bytes at most
        above = os.open(small.volume.data, os.O_PATH)
        server.bind(f"/proc/self/fd/{above}/s")
        os.close(above)
    assert paths(small) == ["PG_VERSION", "base-2", "base/5/1259", "base/5/16384.1", "pg_tblspc/.tdefs/file"]


def test_path_that_is_no_utf8_survives(small: SmallVolume) -> None:
    small.encrypt(STRAY, b"content")
    assert paths(small) == [STRAY]
    assert read(small, STRAY) == b"content"
    found = describe(small.volume, STRAY)
    assert found is not None
    assert (found.path, found.kind, found.state) == (STRAY, "stray", ENCRYPTED)


def test_file_that_vanished_is_skipped(small: SmallVolume) -> None:
    small.encrypt("a", b"x")
    small.encrypt("b", b"x")
    described = describe_all(small.volume)
    assert next(described).path == "a"
    small.path("b").unlink()
    assert list(described) == []


@pytest.mark.parametrize(
    "path", ["../x", "a/../a", "./a", "/a", "a/", "", "a//b", ".tdefs/volume.json", ".", "..", "missing", "a\0b"]
)
def test_path_that_leads_out_of_the_volume_is_not_there(small: SmallVolume, path: str) -> None:
    small.encrypt("a", b"x")
    (small.volume.backing.parent / "x").touch()
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        read(small, path)


def test_symbolic_link_in_the_middle_of_a_path_is_not_followed(small: SmallVolume, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"content")
    small.path("link").symlink_to(tmp_path / "outside")
    with pytest.raises(NotADirectoryError):
        read(small, "link/file")


@pytest.mark.parametrize(
    "length", [0, 1, 15, 16, 17, 8191, 8192, 8193, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 17]
)
def test_every_length_is_read_back(small: SmallVolume, length: int) -> None:
    content = (os.urandom(1021) * (length // 1021 + 1))[:length]
    small.encrypt("file", content)
    assert read(small, "file") == content
    found = describe(small.volume, "file")
    assert found is not None
    assert (found.size, found.stored_size) == (length, small.path("file").stat().st_size)


def test_reading_leaves_the_backing_directory_as_it_is(small: SmallVolume) -> None:
    small.encrypt("base/5/16384", b"x" * 20000)
    small.path("empty").touch()

    def snapshot() -> dict[str, tuple[int, int, bytes]]:
        found = [path for path in small.volume.data.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) for path in found}

    before = snapshot()
    list(describe_all(small.volume))
    read(small, "base/5/16384")
    read(small, "empty")
    assert snapshot() == before


def test_directory_that_cannot_be_read_is_reported(small: SmallVolume, monkeypatch: pytest.MonkeyPatch) -> None:
    # root can read anything, so the refusal is the system call's
    small.encrypt("base/5/1259", b"x")
    listdir = os.listdir

    def refuse(fd: int) -> list[str]:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "5":
            raise PermissionError(13, "Permission denied", fd)
        return listdir(fd)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError):
        paths(small)
    errors: list[OSError] = []
    assert list(walk(small.volume, errors.append)) == []
    assert [error.filename for error in errors] == [str(small.volume.data / "base/5")]


def test_tree_deeper_than_any_path_is_read(small: SmallVolume) -> None:
    """Through a mount, one step at a time, such trees can be made."""
    small.encrypt("file", b"at the bottom")
    fd = os.open(small.volume.data, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("directory", dir_fd=fd)
        below = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.rename(small.path("file"), "file", dst_dir_fd=fd)
    os.close(fd)
    path = "directory/" * 600 + "file"
    assert paths(small) == [path]
    assert read(small, path) == b"at the bottom"
    subprocess.run(["rm", "-rf", str(small.volume.data / "directory")], check=True)


def test_directory_without_a_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TdefsError) as caught:
        volume_at(tmp_path)
    assert caught.value.exit_code == Exit.NOT_A_VOLUME


@pytest.mark.parametrize("plain_files", [False, True])
@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("name", ["base/5/16384", "pg_wal/000000010000000000000001"])
@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(100), bytes(8192), bytes(9000), bytes(8192) + b"x" * 8192, b"\x89TDEFS\r\n"]
)
def test_what_is_told_without_keys_is_what_is_read_with_them(
    tmp_path: Path, plain_files: bool, crashed: bool, name: str, content: bytes
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nkinds: {wal: plain}\n")
    small = SmallVolume(tmp_path, policy=policy, plain_files=plain_files)
    small.plain(name, content)
    if crashed:
        small.crash()
    found = describe(small.volume, name, small.believed)
    assert found is not None
    try:
        with small.reader().open(name) as file:
            state = {Plain: PLAIN, Empty: EMPTY, Encrypted: ENCRYPTED}[type(file.form)]
            length = file.length
    except FormatError as error:
        assert (found.state, found.error) == (DAMAGED, str(error))
    else:
        assert (found.state, found.size, found.error) == (state, length, None)


def test_wiped_header_is_damage_even_where_the_policy_is_lost(tmp_path: Path) -> None:
    small = SmallVolume(tmp_path, policy=tmp_path / "lost.yaml", plain_files=True)
    small.plain("base/5/16384", bytes(16384) + b"x")
    with pytest.raises(MissingHeader):
        read(small, "base/5/16384")

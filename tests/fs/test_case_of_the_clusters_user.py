"""A daemon of root serves a cluster of ``postgres``, who tries to become root by way of the backing directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import EIO
from functools import partial
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.volume.backing import claim, weaknesses
from tdefs.volume.description import read_volume
from tests.support.account import Account
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

SECRET = b"root:secret"


@pytest.fixture
def account(workspace: Workspace) -> Account:
    return workspace.account


@pytest.fixture
def cluster(volume: Volume, account: Account) -> Iterator[Volume]:
    """Set up as in the README: the mount's root is given to postgres, through the mount."""
    volume.mount(owner=account)
    yield volume
    assert wide_open(volume) == [], "the backing directory did not stay root's alone"


@pytest.fixture
def secret(volume: Volume) -> Path:
    """A file of root's, which only root may read."""
    path = volume.root / "shadow"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def wide_open(volume: Volume) -> list[Path]:
    """The directories of the volume that are not root's alone."""
    return [
        path
        for path in (volume.backing, volume.backing / ".tdefs")
        if (path.lstat().st_uid, stat.S_IMODE(path.lstat().st_mode)) != (0, 0o700)
    ]


def as_user(account: Account, function: Callable[[], object]) -> object:
    return in_child(function, uid=account.uid, gid=account.gid)


#: What the attacker needs to begin with.
WAYS_IN: dict[str, Callable[[Volume], object]] = {
    "look into the backing directory": lambda volume: os.listdir(volume.backing),
    "look into the tree": lambda volume: os.listdir(volume.data),
    "look into tdefs's own": lambda volume: os.listdir(volume.backing / ".tdefs"),
    "put another .tdefs there": lambda volume: (volume.backing / ".tdefs").rename(volume.backing / "old"),
    "put another tree there": lambda volume: volume.data.rename(volume.backing / "old"),
    "plant a file": lambda volume: (volume.data / "planted").write_bytes(b""),
    "plant a link": lambda volume: (volume.data / "link").symlink_to("/etc/shadow"),
    "plant a log": lambda volume: (volume.backing / ".tdefs" / "log").symlink_to("/etc/passwd"),
    "exchange a directory": lambda volume: (volume.data / "directory").rename(volume.data / "moved"),
    "open the way": lambda volume: volume.backing.chmod(0o777),
    "take the backing directory": lambda volume: os.chown(volume.backing, os.geteuid(), -1),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_clusters_user_does_not_get_into_the_backing_directory(
    cluster: Volume, account: Account, way: str
) -> None:
    as_user(account, (cluster.mountpoint / "directory").mkdir)
    with pytest.raises(PermissionError):
        as_user(account, lambda: WAYS_IN[way](cluster))


def test_whatever_is_done_to_the_mounts_root_the_backing_directory_stays_the_daemons(
    cluster: Volume, account: Account
) -> None:
    for mode in (0o777, 0o4777, 0o2777, 0o1777, 0o755, 0o000, 0o700):
        as_user(account, partial(cluster.mountpoint.chmod, mode))
        assert stat.S_IMODE(cluster.data.stat().st_mode) == mode
        assert wide_open(cluster) == []
    os.chown(cluster.mountpoint, NOBODY, NOBODY)
    assert (cluster.data.stat().st_uid, wide_open(cluster)) == (NOBODY, [])
    os.utime(cluster.mountpoint, ns=(1, 1))
    cluster.umount()
    cluster.mount()
    assert (cluster.mountpoint.stat().st_uid, wide_open(cluster)) == (NOBODY, [])


def test_chmod_through_the_mount_reaches_no_file_of_root(cluster: Volume, account: Account, secret: Path) -> None:
    """The issue's case, with the way to the tree opened by hand: the daemon itself must not follow the link."""
    directory, stored = cluster.mountpoint / "directory", cluster.data / "directory"
    as_user(account, directory.mkdir)
    before = secret.stat()
    cluster.backing.chmod(0o711)

    def exchange() -> None:
        directory.stat()
        stored.rename(cluster.data / "moved")
        stored.symlink_to(secret)

    def attack() -> None:
        directory.chmod(0o666)

    try:
        as_user(account, exchange)
        with pytest.raises(OSError) as caught:
            as_user(account, attack)
    finally:
        cluster.backing.chmod(0o700)
    assert caught.value.errno == EIO
    assert (secret.stat().st_mode, secret.stat().st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    with pytest.raises(PermissionError):
        as_user(account, secret.read_bytes)
    assert any("directory: something else lies in its place" in line for line in cluster.complaints())


@pytest.mark.parametrize("name", ["", ".tdefs"])
@pytest.mark.parametrize("to", ["owner", "mode"])
def test_a_volume_that_another_user_could_change_is_not_mounted(
    volume: Volume, account: Account, name: str, to: str
) -> None:
    place = volume.backing / name
    if to == "owner":
        account.own(place)
    else:
        place.chmod(0o720)
    before = sorted((path, path.lstat().st_mtime_ns) for path in volume.backing.rglob("*"))
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
    assert done.returncode == Exit.FILE_UNTRUSTED
    assert "HINT:" in done.stderr
    assert "chown root" in done.stderr if to == "owner" else "chmod go-w" in done.stderr, done.stderr
    assert not volume.is_mounted
    assert sorted((path, path.lstat().st_mtime_ns) for path in volume.backing.rglob("*")) == before
    os.chown(place, 0, 0)
    place.chmod(0o700)
    volume.mount()


@pytest.mark.parametrize("to", ["owner", "mode", "link"])
def test_a_volume_that_another_user_could_exchange_as_a_whole_is_not_mounted(
    volume: Volume, account: Account, to: str
) -> None:
    """Also where this comes about between what read the volume's description and the mount itself."""
    found = read_volume(volume.backing)
    assert (claim(found, read_only=False), list(weaknesses(found, 0))) == ([], [])
    if to == "owner":
        account.own(volume.root)
    elif to == "mode":
        volume.root.chmod(0o775)
    else:
        # a directory above it is a link of another user's
        users = volume.root / "users"
        users.mkdir()
        (users / "link").symlink_to(volume.root)
        account.own(users)
        found = replace(found, backing=users / "link" / volume.backing.name)
    with pytest.raises(TdefsError, match="could exchange") as caught:
        claim(found, read_only=False)
    assert caught.value.exit_code == Exit.FILE_UNTRUSTED
    assert caught.value.hint.startswith(("chown root ", "chmod go-w "))
    assert "could exchange" in next(weaknesses(found, 0))[0]
    if to != "link":
        done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
        assert done.returncode == Exit.FILE_UNTRUSTED, done.stderr
    assert not volume.is_mounted


def test_rights_to_read_are_taken_away_at_the_next_mount(volume: Volume) -> None:
    for place in (volume.backing, volume.backing / ".tdefs"):
        place.chmod(0o755)
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "-o", "ro")
    assert done.stderr.count("left so") == 2
    assert len(wide_open(volume)) == 2
    volume.umount()
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock)
    assert done.stderr.count("set to 0700") == 2
    assert wide_open(volume) == []


@pytest.mark.parametrize("name", ["", ".tdefs", "data"])
def test_a_link_in_the_place_of_a_directory_of_the_volume_is_not_followed(volume: Volume, name: str) -> None:
    place = volume.backing / name
    place.rename(volume.root / "elsewhere")
    place.symlink_to(volume.root / "elsewhere")
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
    if name:
        assert done.returncode not in (Exit.OK, Exit.UNEXPECTED)
        assert not volume.is_mounted
    else:
        # that is where the volume is; who may make links there is root
        assert done.returncode == Exit.OK


def test_init_takes_no_directory_of_another_user(scratch: Workspace, account: Account) -> None:
    volume = scratch.volume("foreign")
    account.own(volume.backing)
    words: list[str | Path] = ["init", volume.backing, *volume.unlock, "--keystore", volume.keystore]
    done = volume.tdefs(*words, check=False)
    assert done.returncode == Exit.FILE_UNTRUSTED
    assert "chown 0" in done.stderr
    assert list(volume.backing.iterdir()) == []
    os.chown(volume.backing, 0, 0)
    volume.backing.chmod(0o777)
    volume.tdefs(*words)
    assert wide_open(volume) == []


@pytest.mark.parametrize("name", [".tdefs", "data"])
def test_init_does_not_follow_what_was_put_into_the_empty_directory(scratch: Workspace, name: str) -> None:
    volume = scratch.volume("planted")
    (volume.root / "elsewhere").mkdir()
    (volume.backing / name).symlink_to(volume.root / "elsewhere")
    words: list[str | Path] = ["init", volume.backing, *volume.unlock, "--keystore", volume.keystore]
    assert volume.tdefs(*words, check=False).returncode == Exit.FILE_UNTRUSTED
    assert list((volume.root / "elsewhere").iterdir()) == []


def test_a_volume_of_the_old_layout_is_named(volume: Volume) -> None:
    description = volume.backing / ".tdefs/volume.json"
    text = description.read_text()
    description.write_text(text.replace('"format_version": 2', '"format_version": 1'))
    for command in ("mount", "verify", "ls"):
        words: list[str | Path] = [command, volume.backing, *([volume.mountpoint] if command == "mount" else [])]
        done = volume.tdefs(*words, *([] if command == "ls" else volume.unlock), check=False)
        assert done.returncode == Exit.VOLUME_DAMAGED
        assert "it was made by an older tdefs" in done.stderr
        assert "HINT:  read it with the tdefs that made it" in done.stderr
    description.write_text(text)
    volume.data.rename(volume.backing / "other")
    done = volume.tdefs("ls", volume.backing, check=False)
    assert done.returncode == Exit.VOLUME_DAMAGED
    assert "there is no directory" in done.stderr

"""Where a mount may be made: nobody but root and the daemon's user can lead it, or its end, to another place.

Covers tdefs/mounts/place.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.mounts import place as mount_place
from tdefs.volume.description import read_volume
from tdefs.volume.session_record import read_session
from tests.support.account import Account
from tests.support.children import NOBODY, needs_root
from tests.support.mounts import is_mounted
from tests.support.processes import wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def account(scratch: Workspace) -> Account:
    return scratch.account


def mount(volume: Volume, place: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    return volume.tdefs(
        "mount", volume.backing, place, *volume.unlock, "--log-file", volume.log, *more, check=False
    )


def refused(volume: Volume, place: Path) -> str:
    done = mount(volume, place)
    assert done.returncode == Exit.MOUNTPOINT_INVALID, done.stderr
    assert "HINT:" in done.stderr
    assert volume.daemons == []
    return done.stderr


@contextmanager
def exchanging(account: Account, one: Path, other: Path) -> Iterator[None]:
    """The user exchanges two names, as fast as can be, all the time."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        names = os.fsencode(one), os.fsencode(other)
        while True:
            _libc.renameat2(-100, names[0], -100, names[1], _RENAME_EXCHANGE)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- issue 11, A1 (c)


@pytest.mark.parametrize("deep", [False, True], ids=["the mount point", "a directory above"])
def test_a_user_who_exchanges_directories_for_links_has_root_mount_nothing_anywhere(
    volume: Volume, account: Account, deep: bool
) -> None:
    victim = volume.root / "etc"
    (victim / "mnt").mkdir(parents=True)
    users = volume.root / "users"
    users.mkdir()
    account.own(users)
    real, link = users / "real", users / "link"
    (real / "mnt").mkdir(parents=True)
    account.own(real)
    account.own(real / "mnt")
    link.symlink_to(victim)
    place = real / "mnt" if deep else real
    with exchanging(account, real, link):
        for _ in range(10):
            done = mount(volume, place)
            assert done.returncode in (Exit.MOUNTPOINT_INVALID, Exit.MOUNT_MISPLACED), done.stderr
    assert not any(map(is_mounted, (victim, victim / "mnt", real, real / "mnt", link)))
    assert volume.daemons == []


def test_a_mount_point_of_the_users_own_below_directories_of_roots_is_used(
    volume: Volume, account: Account
) -> None:
    account.own(volume.mountpoint)
    volume.mountpoint.chmod(0o700)
    volume.mount()
    volume.umount()


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_mount_point_in_a_directory_that_others_may_write_to_is_refused(volume: Volume, mode: int) -> None:
    above = volume.root / "above"
    (above / "mnt").mkdir(parents=True)
    above.chmod(mode)
    assert f"mode {mode:04o}" in refused(volume, above / "mnt")
    above.chmod(mode | stat.S_ISVTX)  # as /tmp
    done = mount(volume, above / "mnt")
    assert done.returncode == Exit.OK, done.stderr
    volume.tdefs("umount", above / "mnt")


def test_in_a_sticky_directory_a_mount_point_of_another_users_is_refused(volume: Volume, account: Account) -> None:
    above = volume.root / "above"
    (above / "mnt").mkdir(parents=True)
    above.chmod(0o1777)
    account.own(above / "mnt")
    assert f"belongs to user {account.uid}" in refused(volume, above / "mnt")


def test_a_directory_that_an_access_control_list_opens_is_refused(volume: Volume, account: Account) -> None:
    above = volume.root / "above"
    (above / "mnt").mkdir(parents=True)
    # linux/posix_acl_xattr.h: a header, and an entry each for owner, the user, group, mask, others
    entries = [(1, 7, -1), (2, 7, account.uid), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, perm, who in entries
    )
    try:
        os.setxattr(above, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    refused(volume, above / "mnt")


@pytest.mark.parametrize("owner", ["root", "user"])
def test_a_link_on_the_way_counts_with_the_directory_that_it_lies_in(
    volume: Volume, account: Account, owner: str
) -> None:
    above = volume.root / "above"
    above.mkdir()
    (above / "link").symlink_to("../mnt")
    if owner == "root":
        assert mount(volume, above / "link").returncode == Exit.OK
        assert volume.is_mounted
        volume.tdefs("umount", above / "link")
        return
    account.own(above)
    refused(volume, above / "link")


# --- after mounting


@pytest.mark.parametrize("change", ["renamed", "a link"])
def test_a_mount_that_came_to_lie_elsewhere_is_taken_away(volume: Volume, change: str) -> None:
    """Root itself changes directories while the volume is unlocked: the key command is run in between."""
    above, elsewhere = volume.root / "above", volume.root / "elsewhere"
    for place in (above, elsewhere):
        (place / "mnt").mkdir(parents=True)
    do = f"mv {above} {above}.old"
    if change == "a link":
        do += f" && ln -s {elsewhere} {above}"
    done = volume.tdefs(
        *("mount", volume.backing, above / "mnt", "--log-file", volume.log),
        *("--key-command", f"{do} && cat {volume.key_file}"),
        check=False,
    )
    assert done.returncode == (Exit.MOUNT_MISPLACED if change == "a link" else Exit.OS_ERROR), done.stderr
    assert not any(is_mounted(place / "mnt") for place in (above, elsewhere, Path(f"{above}.old")))
    assert wait_until(lambda: volume.daemons == [], 10)
    session = read_session(read_volume(volume.backing))
    # where the directory is gone, the volume is not begun with
    assert (session is not None and session.clean) if change == "a link" else session is None
    (above.unlink if change == "a link" else lambda: None)()
    volume.mount()


def test_a_directory_that_is_renamed_while_it_is_mounted_on_is_told(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the mount point and the look at what was mounted there."""
    above = volume.root / "above"
    (above / "mnt").mkdir(parents=True)
    with mount_place.mount_place(above / "mnt") as place:
        source, target = os.fsencode(volume.backing), os.fsencode(place.target)
        assert _libc.mount(source, target, b"tmpfs", 0, None) == 0
        monkeypatch.setattr(mount_place, "FUSE_TYPE", "tmpfs")
        assert place.device(volume.backing)
        above.rename(volume.root / "moved")
        with pytest.raises(TdefsError) as caught:
            place.device(volume.backing)
    assert caught.value.exit_code == Exit.MOUNT_MISPLACED
    assert str(volume.root / "moved" / "mnt") in caught.value.message
    assert not is_mounted(volume.root / "moved" / "mnt")


# --- umount


@contextmanager
def other_mount(scratch: Workspace) -> Iterator[Volume]:
    other = scratch.volume("other")
    other.init()
    other.mount()
    yield other
    assert other.is_mounted, "root has taken away another mount than was meant"
    assert other.daemons
    other.umount()


def test_root_unmounts_nothing_by_a_path_that_another_user_leads_elsewhere(
    scratch: Workspace, account: Account
) -> None:
    users = scratch.directory("users")
    account.own(users)
    with other_mount(scratch) as other:
        (users / "mnt").symlink_to(other.mountpoint)
        os.chown(users / "mnt", account.uid, account.gid, follow_symlinks=False)
        done = other.tdefs("umount", users / "mnt", check=False)
        assert done.returncode == Exit.MOUNTPOINT_INVALID, done.stderr
        assert "others could exchange" in done.stderr
        # a mount that root made before somebody else got the directory above
        os.chown(other.root, NOBODY, NOBODY)
        try:
            done = other.tdefs("umount", other.mountpoint, check=False)
            assert done.returncode == Exit.MOUNTPOINT_INVALID, done.stderr
        finally:
            os.chown(other.root, 0, 0)

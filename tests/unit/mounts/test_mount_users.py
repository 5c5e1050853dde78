"""Which mounts of a file system stay when one is unmounted; the kernel's own answers are in tests/fs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdefs.errors import Exit
from tdefs.mounts import users as mount_users
from tdefs.mounts.table import FUSE_TYPE, OWN, MountInfo, Namespace

POINT = Path("/srv/postgresql/15")


def disk(number: int, *, peers: str = "", master: str = "", point: str = "/", root: str = "/") -> MountInfo:
    options = frozenset({"rw"})
    return MountInfo("8:1", Path(point), "ext4", "/dev/sda1", options, number, 1, root, peers, master)


def served(number: int, parent: int, point: str = str(POINT), kind: str = FUSE_TYPE) -> MountInfo:
    device = "0:50" if kind == FUSE_TYPE else "0:60"
    return MountInfo(device, Path(point), kind, "/srv/main", frozenset({"rw"}), number, parent)


def elsewhere(
    monkeypatch: pytest.MonkeyPatch, *others: list[MountInfo], own: list[MountInfo] | None = None
) -> str:
    """What is told of other places, with these views from other processes."""
    views = [Namespace(OWN, is_own=True, mounts=own or [disk(10, peers="1"), served(11, 10)])]
    views += [Namespace(Path(f"/proc/{1000 + n}"), is_own=False, mounts=view) for n, view in enumerate(others)]
    monkeypatch.setattr(mount_users, "namespaces", lambda: iter(views))
    error = mount_users.mounted_elsewhere(POINT)
    assert error is None or error.exit_code is Exit.MOUNT_BUSY
    return error.detail if error else ""


def test_copies_of_peers_and_of_slaves_of_slaves_go_with_the_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = [disk(20, peers="1"), served(21, 20)]
    slave = [disk(30, master="1", peers="2"), served(31, 30)]
    slave_of_slave = [disk(40, master="2"), served(41, 40)]
    assert elsewhere(monkeypatch, slave_of_slave, slave, peer) == ""


def test_a_copy_that_lies_in_another_mount_of_the_same_place_goes_with_the_mount(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under ReadWritePaths=, which mounts a directory over itself."""
    bound = [disk(20, master="1"), disk(22, master="1", point="/var/lib", root="/var/lib"), served(23, 22)]
    assert elsewhere(monkeypatch, bound) == ""


@pytest.mark.parametrize(
    "view",
    [
        [disk(20), served(21, 20)],
        [disk(20, master="7"), served(21, 20)],
        [disk(20, master="1"), served(21, 20, "/elsewhere")],
        [disk(20, master="1"), served(21, 20), served(22, 21, f"{POINT}/main/pg_wal", kind="tmpfs")],
        [served(21, 20)],
    ],
    ids=["private", "another group", "another place", "something inside", "parent unseen"],
)
def test_any_other_copy_stays_and_is_told(monkeypatch: pytest.MonkeyPatch, view: list[MountInfo]) -> None:
    assert "in the mount namespace of" in elsewhere(monkeypatch, view)


def test_a_mount_that_is_private_here_is_passed_on_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [disk(10), served(11, 10)]
    assert elsewhere(monkeypatch, [disk(20), served(21, 20)], own=own)
    assert elsewhere(monkeypatch, own=own) == ""


def test_who_sees_less_of_the_same_mounts_from_a_root_of_its_own_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slave = [disk(30, master="1"), served(31, 30)]
    jailed = [served(31, 30, "/15")]
    here = [served(11, 10, "/15")]
    assert elsewhere(monkeypatch, jailed, here, slave) == ""

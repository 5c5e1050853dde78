"""What another user has mounted is never "the volume" of a command that names none. Covers tdefs/mounts/known.py.

Every user can make a FUSE mount of the type fuse.tdefs whose source names any directory, and need not answer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tdefs.errors import Exit
from tests.support.children import needs_root
from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

MALLORY = 54321
LIMIT = 30
# Mounts of users, served by nobody: (mount point, source, user); then the commands. Prints what each of them said.
_SCRIPT = f"""
import ctypes, json, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
mounts, commands = json.loads(sys.argv[1])
kept = []
for point, source, user in mounts:
    device = os.open("/dev/fuse", os.O_RDWR)
    kept.append(device)
    options = f"fd={{device}},rootmode=40000,user_id={{user}},group_id=0,allow_other".encode()
    assert libc.mount(source.encode(), point.encode(), b"fuse.tdefs", 6, options) == 0, ctypes.get_errno()
said = []
for words in commands:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout={LIMIT}, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        said.append([-1, "", "it hangs"])
    else:
        said.append([done.returncode, done.stdout, done.stderr])
print(json.dumps(said))
"""


class Host:
    """A mount namespace of its own, with a volume of root's and one of another user's that nobody asked for."""

    def __init__(self, space: Workspace) -> None:
        self.volume: Volume = space.volume("of-root")
        self.volume.init()
        self.lure: Volume = space.volume("of-mallory")
        self.lure.init()
        for path in (self.lure.root, *self.lure.root.rglob("*")):
            os.chown(path, MALLORY, MALLORY, follow_symlinks=False)

    def run(
        self, *commands: tuple[str | Path, ...], mounts: tuple[tuple[Volume, int], ...], source: Path | None = None
    ) -> list[list[Any]]:
        """What each command of root's said while these volumes are mounted by these users."""
        made = [(str(volume.mountpoint), str(source or volume.backing), user) for volume, user in mounts]
        given = json.dumps([made, [[str(TDEFS), *map(str, words)] for words in commands]])
        enter = f'{LET_GO_OF_OTHERS}\nshift; exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", enter, "sh", "/none", sys.executable, "-c", _SCRIPT, given],
            capture_output=True,
            text=True,
            check=True,
            timeout=(len(commands) + 1) * LIMIT,
        )
        answers: list[list[Any]] = json.loads(done.stdout)
        return answers


@pytest.fixture
def host(scratch: Workspace) -> Host:
    return Host(scratch)


COMMANDS: list[tuple[str, ...]] = [
    ("key", "list"),
    ("protector", "list"),
    ("key", "verify"),
    ("key", "repair"),
    ("key", "history", "--unchecked"),
    ("auto-open", "status"),
    ("volume", "list"),
]


def test_a_mount_of_another_user_is_no_volume_of_a_command_that_names_none(host: Host) -> None:
    for code, _, said in host.run(*COMMANDS, mounts=((host.lure, MALLORY),)):
        assert code == Exit.USAGE
        assert "which volume?" in said


def test_the_only_mount_of_its_own_is_meant_whatever_others_have_mounted(host: Host) -> None:
    for code, _, said in host.run(
        ("key", "list"), ("key", "verify", *host.volume.unlock), mounts=((host.lure, MALLORY), (host.volume, 0))
    ):
        assert code == Exit.OK, said


def test_a_source_that_names_a_volume_of_roots_makes_it_no_mount_of_roots(host: Host) -> None:
    ((code, _, said),) = host.run(("key", "list"), mounts=((host.lure, MALLORY),), source=host.volume.backing)
    assert (code, "which volume?" in said) == (Exit.USAGE, True)


def test_a_mount_that_does_not_answer_holds_no_command_of_another_user(host: Host) -> None:
    """Not even one whose source says that it is the volume that the command names."""
    place: tuple[str | Path, ...] = ("--volume", host.volume.backing, *host.volume.unlock)
    words: list[tuple[str | Path, ...]] = [
        ("key", "rotate", "dk_1", *place),
        ("key", "revoke", "dk_1", "--round", "1", *place),
        ("key", "destroy", "dk_1", "--round", "1", *place),
        ("verify", host.volume.backing, *host.volume.unlock),
        ("ls", host.volume.backing),
        ("doctor",),
    ]
    for code, _, said in host.run(*words, mounts=((host.lure, MALLORY),), source=host.volume.backing):
        assert code == Exit.OK, said


def test_where_another_user_has_mounted_something_root_mounts_and_reads_nothing(host: Host) -> None:
    """A FUSE mount says that all in it is root's, and need not answer."""
    at = host.lure.mountpoint
    os.chown(host.lure.root, 0, 0)  # nothing but the mount itself is the other user's
    commands: tuple[tuple[tuple[str | Path, ...], Exit], ...] = (
        (("mount", host.volume.backing, at, *host.volume.unlock), Exit.MOUNTPOINT_INVALID),
        (("key", "list", "--volume", host.volume.backing, "--config", at / "tdefs.yaml"), Exit.CONFIG_EXPOSED),
    )
    answers = host.run(*(words for words, _ in commands), mounts=((host.lure, MALLORY),))
    for (_, wanted), (code, _, said) in zip(commands, answers, strict=True):
        assert code == wanted, said
        assert str(at) in said


def test_a_mount_that_does_not_answer_is_told_of_and_taken_away(host: Host) -> None:
    words: tuple[tuple[str | Path, ...], ...] = (
        ("status", host.lure.mountpoint),
        ("umount", host.lure.mountpoint),
    )
    (status, _, _), (umount, _, said) = host.run(*words, mounts=((host.lure, MALLORY),))
    assert status == Exit.NOT_MOUNTED
    assert umount == Exit.OK, said


def test_daemons_of_other_users_than_the_keystore_s_are_not_told_of_its_keys(host: Host) -> None:
    """A copy of the volume that another user has mounted is seen by no change of root's keystore."""
    copy = host.lure.root / "copy"
    shutil.copytree(host.volume.backing, copy)
    place: tuple[str | Path, ...] = ("--volume", host.volume.backing, *host.volume.unlock)
    ((code, _, said),) = host.run(("key", "rotate", "dk_1", *place), mounts=((host.lure, MALLORY),), source=copy)
    assert code == Exit.OK, said
    assert str(copy) not in said

"""A configuration that a user may not read is none, and makes no command fail. Covers tdefs/config.py."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.children import in_child, needs_root
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
CONFIGURATION = Path("/etc/tdefs/tdefs.yaml")
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A mount namespace with an /etc/tdefs, and a volume of the server's user."""

    def __init__(self, space: Workspace) -> None:
        self.account = space.account
        self.volume: Volume = space.volume("configured")
        self.etc = space.directory("etc") / "etc"
        subprocess.run(["cp", "-a", "/etc", self.etc], check=True)
        self.directory = self.etc / "tdefs"
        self.file = self.directory / "tdefs.yaml"
        self.directory.mkdir(exist_ok=True)
        node = self.volume.root / "fuse"
        os.mknod(node, 0o020666, Path("/dev/fuse").stat().st_rdev)
        node.chmod(0o666)
        for path in (self.volume.root, *self.volume.root.iterdir()):
            self.account.own(path)
        self._binds = {"/etc": self.etc, "/dev/fuse": node}

    def run(self, *commands: tuple[str | Path, ...]) -> list[tuple[int, str]]:
        """Return exit code and standard error of each command that the server's user runs in the namespace."""

        def inside() -> list[tuple[int, str]]:
            assert _libc.unshare(_CLONE_NEWNS) == 0
            assert _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
            for place, by in self._binds.items():
                subprocess.run(["mount", "--bind", by, place], check=True)
            answers = []
            for words in commands:
                command = self.account.command(TDEFS, *words)
                done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)
                answers.append((done.returncode, done.stderr))
            return answers

        return in_child(inside)


@pytest.fixture
def host(scratch: Workspace) -> Host:
    return Host(scratch)


@pytest.mark.parametrize(
    ("directory", "file", "told"),
    [
        (0o700, None, '"/etc/tdefs"'),
        (0o755, 0o600, '"/etc/tdefs/tdefs.yaml"'),
        (0o755, 0o644, None),
    ],
)
def test_commands_of_another_user_work_beside_a_configuration_of_roots(
    host: Host, directory: int, file: int | None, told: str | None
) -> None:
    if file is not None:
        host.file.write_text("version: 1\n")
        host.file.chmod(file)
    host.directory.chmod(directory)
    volume = host.volume
    place = ("--volume", volume.backing)
    keyed: tuple[str | Path, ...] = (*volume.unlock, "--keystore", volume.root / "keystore")
    answers = host.run(
        ("init", volume.backing, *keyed),
        ("mount", volume.backing, volume.mountpoint, *keyed),
        ("protector", "list", *place),
        ("key", "rotate", "dk_1", *place, *keyed),
        ("doctor",),
        ("key-source", "list"),
        ("umount", volume.mountpoint),
        ("verify", volume.backing, *keyed),
        ("ls", volume.backing),
    )
    for code, said in answers:
        assert code == Exit.OK, said
        assert "Permission denied" not in said
        assert said.count("this user may not read") <= 1
        assert told is not None or "may not read" not in said
    if told is not None:
        for number in (0, 1, 7):
            assert f"this user may not read {told}: no configuration is used" in answers[number][1]


@pytest.mark.parametrize(("directory", "bar"), [(0o700, CONFIGURATION.parent), (0o755, CONFIGURATION)])
def test_unreadable_configuration_that_was_asked_for_is_an_error_that_names_what_bars_the_way(
    host: Host, directory: int, bar: Path
) -> None:
    host.file.write_text("version: 1\n")
    host.file.chmod(0o600)
    host.directory.chmod(directory)
    for words in (("key-source", "list"), ("doctor",)):
        ((code, said),) = host.run((*words, "--config", CONFIGURATION))
        assert code == Exit.CONFIG_INVALID
        assert f'could not read configuration file "{CONFIGURATION}": Permission denied' in said
        assert f'HINT:  let this user read "{bar}"' in said


def test_nothing_that_a_user_can_do_alone_needs_the_configuration_of_roots(host: Host) -> None:
    """Every command, beside a directory that this user may not even look into."""
    host.directory.chmod(0o700)
    volume = host.volume
    unlock = tuple(volume.unlock)
    place = ("--volume", volume.backing)
    policy = volume.root / "policy.yaml"
    policy.write_text("version: 1\n")
    host.account.own(policy)
    commands: list[tuple[str | Path, ...]] = [
        ("--help",),
        ("--version",),
        ("init", "--help"),
        ("init", volume.backing, *unlock, "--policy", policy),
        ("mount", volume.backing, volume.mountpoint, *unlock),
        ("status", volume.mountpoint),
        ("doctor",),
        ("key", "list"),
        ("key", "list", *place),
        ("key", "show", "dk_1", *place),
        ("key", "verify", *place, *unlock),
        ("key", "history", *place, *unlock),
        ("key", "history", "--unchecked", *place),
        ("key", "rotate-master", *place, *unlock),
        ("key", "create", "dk_2", *place, *unlock),
        ("protector", "add", "--new-key-command", "printf %%064d 9", *place, *unlock),
        ("protector", "test", *place, *unlock),
        ("auto-open", "status", *place),
        ("volume", "list", *place),
        ("policy", "check", policy),
        ("policy", "explain", "--volume", volume.backing, "base/5/16384"),
        ("umount", volume.mountpoint),
        ("ls", volume.backing),
        ("verify", volume.backing, *unlock),
        ("key", "repair", *place),
    ]
    for words, (code, said) in zip(commands, host.run(*commands), strict=True):
        assert code == Exit.OK, (words, said)
        assert "Permission denied" not in said


def test_a_file_of_a_volume_in_an_unreadable_directory_is_an_error_that_says_what_to_do(host: Host) -> None:
    host.directory.chmod(0o700)
    volume, unlock = host.volume, host.volume.unlock
    place = ("--volume", volume.backing)
    away = host.directory / "main"
    away.write_text("x")
    there = CONFIGURATION.with_name("main")
    answers = host.run(
        ("init", volume.backing, *unlock),
        ("key", "list", *place, "--keystore", there),
        ("key", "verify", *place, "--passphrase-file", there),
        ("protector", "add", *place, *unlock, "--new-passphrase-file", there, "--scrypt-cost", "14"),
        ("mount", volume.backing, volume.mountpoint, *unlock, "--policy", there),
        ("policy", "check", there),
    )
    codes = [code for code, _ in answers]
    assert codes == [0, Exit.OS_ERROR, Exit.NO_SECRET, Exit.NO_SECRET, Exit.POLICY_INVALID, Exit.POLICY_INVALID]
    for number in (1, 3, 4, 5):
        assert f'"{there}"' in answers[number][1]
        assert 'HINT:  let this user read "/etc/tdefs", or run the command as a user who may' in answers[number][1]


def test_configuration_that_is_missing_and_was_asked_for_is_an_error(host: Host) -> None:
    ((code, said),) = host.run(("key-source", "list", "--config", "/etc/tdefs/none.yaml"))
    assert code == Exit.CONFIG_INVALID
    assert "No such file or directory" in said
    assert "HINT:  check the path" in said

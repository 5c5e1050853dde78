"""What a process of root's is told to believe or to run, nobody else can change. Covers tdefs/trust.py.

Likewise for a daemon of another user, who believes root and itself.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli.common.terminal import warn
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.private_files import read_file, read_passphrase_file
from tdefs.keys.protectors.command import KeyCommand
from tdefs.keys.protectors.command_text import command_directory
from tdefs.policy.parse import load_policy
from tests.support.children import in_child, needs_root
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

MALLORY = 54321
DAEMON = 54322
KEY = "ab" * 32
#: It is a configuration, a policy, a shell script that prints a key, and a passphrase all in one.
CONTENT = "version: 1\n"
SCRIPT = f"#!/bin/sh\necho {KEY}\n"


@pytest.fixture
def place(scratch: Workspace) -> Path:
    """A directory that every user may pass through, and that root alone can change."""
    return scratch.directory("exposed")


def written(path: Path, content: str, mode: int = 0o644) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


# --- how something is exposed: each makes the file of a content, and returns how it is called and what to look for


def owner(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    path = written(place / "file", content, mode)
    os.chown(path, MALLORY, 0)
    return path, path


def group(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    path = written(place / "file", content, mode | 0o020)
    return path, path


def everybody(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    path = written(place / "file", content, mode | 0o002)
    return path, path


def directory_of_another(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    above = place / "above"
    (above / "below").mkdir(parents=True)
    os.chown(above, MALLORY, 0)
    return written(above / "below" / "file", content, mode), above


def directory_of_a_group(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    above = place / "above"
    (above / "below").mkdir(parents=True)
    above.chmod(0o775)
    return written(above / "below" / "file", content, mode), above


def file_of_another_in_a_sticky_directory(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    place.chmod(0o1777)
    path = written(place / "file", content, mode)
    os.chown(path, MALLORY, 0)
    return path, path


def directory_of_another_in_a_sticky_directory(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    place.chmod(0o1777)
    (place / "d").mkdir()
    os.chown(place / "d", MALLORY, 0)
    return written(place / "d" / "file", content, mode), place / "d"


def link_of_another_in_a_sticky_directory(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    (place / "safe").mkdir()
    (place / "sticky").mkdir()
    (place / "sticky").chmod(0o1777)
    written(place / "safe" / "file", content, mode)
    link = place / "sticky" / "link"
    link.symlink_to("../safe/file")
    os.chown(link, MALLORY, 0, follow_symlinks=False)
    return link, link


def link_to_what_others_can_change(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    directory = place / "target"
    directory.mkdir()
    written(directory / "file", content, mode)
    directory.chmod(0o777)
    (place / "link").symlink_to(directory)
    return place / "link" / "file", directory


def link_through_what_others_can_change(place: Path, content: str, mode: int) -> tuple[Path, Path]:
    """The links lead back to a safe place, by way of one that is not."""
    written(place / "file", content, mode)
    loose = place / "loose"
    loose.mkdir()
    (loose / "on").symlink_to("../file")
    loose.chmod(0o777)
    (place / "link").symlink_to("loose/on")
    return place / "link", loose


EXPOSURES = [
    owner,
    group,
    everybody,
    directory_of_another,
    directory_of_a_group,
    file_of_another_in_a_sticky_directory,
    directory_of_another_in_a_sticky_directory,
    link_of_another_in_a_sticky_directory,
    link_to_what_others_can_change,
    link_through_what_others_can_change,
]


# --- what is used


def key_file(path: Path) -> None:
    assert read_file(path, "key", secret=False)


def passphrase_file(path: Path) -> bytes:
    return read_passphrase_file(path, warn)


USES: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "configuration": (load_config, CONTENT, 0o644),
    "policy": (load_policy, CONTENT + "default: encrypt\n", 0o644),
    "passphrase": (passphrase_file, CONTENT, 0o600),
    "key-file": (key_file, CONTENT, 0o600),
    "program": (lambda path: KeyCommand(f"{path}").read_key(), SCRIPT, 0o755),
    "quoted-program": (lambda path: KeyCommand(f"true && '{path}' x").read_key(), SCRIPT, 0o755),
    "script": (lambda path: KeyCommand(f"sh -u {path}").read_key(), SCRIPT, 0o755),
    "file-it-reads": (lambda path: KeyCommand(f"cat <{path}").read_key(), KEY, 0o600),
    "inner-shell": (lambda path: KeyCommand(f"sh -c 'exec cat {path}'").read_key(), KEY, 0o600),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("exposure", EXPOSURES, ids=lambda one: one.__name__)
def test_what_others_could_change_is_refused(
    place: Path, exposure: Callable[[Path, str, int], tuple[Path, Path]], use: str
) -> None:
    act, content, mode = USES[use]
    path, exposed = exposure(place, content, mode)
    with pytest.raises(TdefsError) as caught:
        act(path)
    error = caught.value
    assert error.exit_code is Exit.CONFIG_EXPOSED
    assert str(path) in error.message
    assert str(exposed) in f"{error.message} {error.detail}"
    assert str(exposed) in error.hint
    assert error.hint.startswith(("chown ", "chmod go-w "))


def plain(place: Path, content: str, mode: int) -> Path:
    return written(place / "file", content, mode)


def in_a_sticky_directory(place: Path, content: str, mode: int) -> Path:
    place.chmod(0o1777)
    return written(place / "file", content, mode)


def behind_links_of_our_own(place: Path, content: str, mode: int) -> Path:
    (place / "d").mkdir()
    written(place / "d" / "file", content, mode)
    (place / "one").symlink_to(place / "d")
    (place / "d" / "two").symlink_to("../one/./file")
    return place / "one" / ".." / "d" / "two"


def in_a_directory_that_others_read(place: Path, content: str, mode: int) -> Path:
    (place / "d").mkdir(mode=0o755)
    return written(place / "d" / "file", content, mode)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "lay", [plain, in_a_sticky_directory, behind_links_of_our_own, in_a_directory_that_others_read]
)
def test_what_root_alone_can_change_is_used(place: Path, lay: Callable[[Path, str, int], Path], use: str) -> None:
    act, content, mode = USES[use]
    act(lay(place, content, mode))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("user", "refused"), [(0, False), (DAEMON, False), (MALLORY, True)])
def test_a_daemon_of_another_user_believes_root_and_itself(
    place: Path, use: str, user: int, refused: bool
) -> None:
    act, content, mode = USES[use]
    path = written(place / "file", content, mode | 0o044)
    os.chown(path, user, 0)

    def used() -> int:
        try:
            act(path)
        except TdefsError as error:
            return error.exit_code
        return 0

    assert in_child(used, uid=DAEMON) == (Exit.CONFIG_EXPOSED if refused else 0)


def test_a_program_that_others_could_put_ahead_in_path_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, own = place / "ahead", place / "own"
    ahead.mkdir()
    own.mkdir()
    written(own / "give-key", SCRIPT, 0o755)
    monkeypatch.setenv("PATH", f"{ahead}:{own}:/usr/bin:/bin")
    assert KeyCommand("give-key").read_key().hex() == KEY
    for mode in (0o777, 0o1777):
        ahead.chmod(mode)
        with pytest.raises(TdefsError) as caught:
            KeyCommand("give-key").read_key()
        assert caught.value.exit_code is Exit.CONFIG_EXPOSED
        assert str(ahead) in caught.value.render()
    # what is looked at later changes nothing
    monkeypatch.setenv("PATH", f"{own}:/usr/bin:/bin:{ahead}")
    assert KeyCommand("give-key").read_key().hex() == KEY


def test_files_of_a_key_command_s_own_directory_are_looked_at(place: Path) -> None:
    keystore = place / "keystore"
    directory = command_directory(keystore)
    directory.mkdir(mode=0o700)
    script = written(directory / "script", SCRIPT, 0o755)
    assert KeyCommand("%d/script", keystore).read_key().hex() == KEY
    assert KeyCommand('"%d/script"', keystore).read_key().hex() == KEY
    os.chown(script, MALLORY, 0)
    with pytest.raises(TdefsError) as caught:
        KeyCommand("%d/script", keystore).read_key()
    assert caught.value.exit_code is Exit.CONFIG_EXPOSED


def test_a_descriptor_that_the_caller_has_opened_is_the_callers(place: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a passphrase\n")
    os.close(writing)
    try:
        assert passphrase_file(Path(f"/dev/fd/{reading}")) == b"a passphrase"
    finally:
        os.close(reading)
    assert passphrase_file(Path("/dev/null")) == b""


def test_every_command_refuses_them_with_its_own_exit_code(scratch: Workspace) -> None:
    volume: Volume = scratch.volume("exposed")
    volume.init()
    config = written(volume.root / "tdefs.yaml", CONTENT, 0o666)
    policy = written(volume.root / "policy.yaml", CONTENT, 0o664)
    secret = written(volume.root / "secret", "correct horse battery\n", 0o620)
    commands: list[tuple[str | Path, ...]] = [
        ("mount", volume.backing, volume.mountpoint, *volume.unlock, "--config", config),
        ("mount", volume.backing, volume.mountpoint, "--key-command", f"cat {secret}"),
        ("mount", volume.backing, volume.mountpoint, *volume.unlock, "--policy", policy),
        ("init", volume.root / "new", *volume.unlock, "--policy", policy),
        ("protector", "list", "--volume", volume.backing, "--config", config),
        ("protector", "add", "--volume", volume.backing, *volume.unlock, "--new-passphrase-file", secret),
        ("key-source", "list", "--config", config),
        ("doctor", "--config", config),
    ]
    for words in commands:
        done = subprocess.run(
            [TDEFS, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
        )
        assert done.returncode == Exit.CONFIG_EXPOSED, (words, done.stderr)
        assert "HINT:  chmod go-w" in done.stderr
        assert not volume.is_mounted
    # a draft is no policy in use
    assert volume.tdefs("policy", "check", policy).returncode == 0

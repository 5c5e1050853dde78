"""The promises of tdefs.keys.protectors.command on placeholders, the directory of %d and a second run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.file import create_keystore, load_keystore
from tdefs.keys.protectors.command import CommandProtector, KeyCommand
from tests.unit.keys.keystore_samples import KEY_HEX, VOLUME_ID, everything_shown

KEY = bytes.fromhex(KEY_HEX)


@pytest.fixture
def keystore(tmp_path: Path) -> Path:
    """A keystore's place, with a name that is hard on shells."""
    directory = tmp_path / 'it\'s "a"; $(false) place'
    directory.mkdir()
    return directory / "main.keystore"


def refused(command: str, keystore: Path | None, exit_code: Exit) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        KeyCommand(command, keystore).read_key()
    assert caught.value.exit_code == exit_code
    assert KEY_HEX not in everything_shown(caught.value)
    return caught.value


def test_directory_of_a_command_is_beside_the_keystore_closed_to_others_and_made_at_need(keystore: Path) -> None:
    directory = keystore.with_name("main.keystore.d")
    assert KeyCommand(f"echo {KEY_HEX}", keystore).read_key() == KEY
    assert not directory.exists()
    before = os.umask(0)
    try:
        command = f'echo {KEY_HEX} > "%d/key"; cat %d/key'
        assert KeyCommand(command, keystore).read_key() == KEY
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o7777 == 0o700
    (directory / "key").chmod(0o600)
    assert KeyCommand("cat %d/key", keystore).read_key() == KEY


def test_directory_that_others_may_open_is_refused(keystore: Path) -> None:
    directory = keystore.with_name("main.keystore.d")
    directory.mkdir(mode=0o700)
    directory.chmod(0o750)
    error = refused("cat %d/key", keystore, Exit.KEYSTORE_EXPOSED)
    assert "0750" in error.detail
    assert "chmod 700 " in error.hint


def test_directory_of_another_user_is_refused(keystore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = keystore.with_name("main.keystore.d")
    directory.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(directory, 54321, -1)  # what is root's own would be all right
    owner = directory.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    error = refused("cat %d/key", keystore, Exit.KEYSTORE_EXPOSED)
    assert f"its owner is user {owner}, and" in error.detail
    assert f"chown {owner + 1} " in error.hint


def test_a_file_where_the_directory_belongs_is_refused(keystore: Path) -> None:
    keystore.with_name("main.keystore.d").touch(0o600)
    assert "it is a file" in refused("cat %d/key", keystore, Exit.FILE_UNTRUSTED).message


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    error = refused("cat %d/key", tmp_path / "none" / "keystore", Exit.OS_ERROR)
    assert "No such file" in error.detail
    assert "install -d -m 700" in error.hint


def test_prompt_names_the_keystore_without_control_characters(tmp_path: Path) -> None:
    out = tmp_path / "prompt"
    KeyCommand(f"printf %%s %p > {out}; echo {KEY_HEX}", Path("/etc/main's \x1b[2J keystore")).read_key()
    assert out.read_text() == 'Secret for the keystore "/etc/main\'s ?[2J keystore": '


def test_terminal_needs_authprompt_and_nothing_is_run_without(tmp_path: Path) -> None:
    with pytest.raises(TdefsError) as caught:
        KeyCommand(f"touch {tmp_path}/ran; echo %R", tmp_path / "keystore")
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED
    assert "--authprompt" in caught.value.message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["echo %d", "echo %p"])
def test_a_command_for_no_keystore_has_no_directory_and_no_prompt(command: str) -> None:
    with pytest.raises(TdefsError) as caught:
        KeyCommand(command)
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED


def test_a_new_key_is_printed_twice_and_must_be_the_same(keystore: Path) -> None:
    runs = keystore.with_name("runs")
    steady = CommandProtector(f"echo %p >> %d/../runs; echo {KEY_HEX}", keystore, confirm=True)
    create_keystore(keystore, VOLUME_ID, steady)
    first, second = runs.read_text().splitlines()
    assert first.endswith('main.keystore": ')
    assert second.endswith('main.keystore", again: ')
    load_keystore(keystore).unlock(CommandProtector(f"echo {KEY_HEX}"))


def test_a_command_that_makes_another_key_each_time_creates_no_keystore(keystore: Path) -> None:
    protector = CommandProtector("od -An -N 32 -v -t x1 /dev/urandom | tr -d ' \\n'", keystore, confirm=True)
    with pytest.raises(TdefsError, match="two different keys") as caught:
        create_keystore(keystore, VOLUME_ID, protector)
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED
    assert not keystore.exists()

"""What a ``tdefs init`` that fails leaves behind. Covers tdefs/cli/init.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tdefs.cli import init
from tdefs.errors import Exit, TdefsError
from tests.support.offline_volumes import KEY_COMMAND, Command


def fail(command: Command, backing: Path, *words: str | Path) -> None:
    with pytest.raises(TdefsError) as caught:
        command.run(init, backing, *words)
    assert caught.value.exit_code in (Exit.KEY_COMMAND_FAILED, Exit.VOLUME_EXISTS)


def test_directories_that_a_failed_init_made_are_gone(tmp_path: Path, command: Command) -> None:
    fail(command, tmp_path / "new" / "backing", "--key-command", "false")
    assert list(tmp_path.iterdir()) == []
    command.run(init, tmp_path / "new" / "backing", "--key-command", KEY_COMMAND)


def test_directories_that_were_there_stay(tmp_path: Path, command: Command) -> None:
    backing = tmp_path / "there" / "backing"
    backing.parent.mkdir()
    fail(command, backing, "--key-command", "false")
    assert list(tmp_path.iterdir()) == [backing.parent]
    backing.mkdir()
    fail(command, backing, "--key-command", "false")
    assert list(backing.parent.iterdir()) == [backing]
    assert list(backing.iterdir()) == []


def test_what_somebody_has_put_there_meanwhile_stays(tmp_path: Path, command: Command) -> None:
    backing = tmp_path / "backing"
    fail(command, backing, "--key-command", f"touch {backing}/file; false")
    assert [path.name for path in backing.iterdir()] == ["file"]


def test_refused_place_of_the_keystore_leaves_no_directory(tmp_path: Path, command: Command) -> None:
    keystore = tmp_path / "keystore"
    keystore.touch()
    fail(command, tmp_path / "backing", "--key-command", KEY_COMMAND, "--keystore", keystore)
    assert list(tmp_path.iterdir()) == [keystore]

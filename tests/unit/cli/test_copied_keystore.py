"""A second volume with a copy of the keystore, also by ``init --existing-keystore``. Covers keystore/copy.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import cat, init
from tdefs.cli.key import command as key
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.history import history_path
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.command_text import command_directory
from tdefs.volume.description import read_volume
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)


class Standby:
    """``tdefs init --existing-keystore`` in a place of its own."""

    def __init__(self, tmp_path: Path, command: Command, small: SmallVolume) -> None:
        self.backing = tmp_path / "standby"
        self.keystore = tmp_path / "standby.keystore"
        self.original = small.volume.keystore
        self._command = command

    def init(self, *words: str | Path, source: Path | None = None) -> str:
        place = ("--keystore", self.keystore, "--existing-keystore", source or self.original)
        return self._command.run(init, self.backing, *place, *(words or UNLOCK))[1]

    def refused(self, *words: str | Path, source: Path | None = None) -> TdefsError:
        with pytest.raises(TdefsError) as caught:
            self.init(*words, source=source)
        assert not (self.backing / ".tdefs").exists()
        return caught.value

    def history(self, *words: str) -> dict[str, Any]:
        found = self._command.json(key, "history", "--volume", self.backing, *(words or UNLOCK))
        assert isinstance(found, dict)
        return found


@pytest.fixture
def standby(tmp_path: Path, command: Command, small: SmallVolume) -> Standby:
    return Standby(tmp_path, command, small)


def test_copy_has_the_same_keys_and_changes_apart(standby: Standby, small: SmallVolume, command: Command) -> None:
    said = standby.init()
    assert f"a copy of {standby.original}, which this volume does not need" in said
    assert read_volume(standby.backing).volume_id == small.volume.volume_id
    copy = load_keystore(standby.keystore)
    assert list(copy.unlock(CommandProtector(KEY_COMMAND))) == list(small.ring)

    before = standby.keystore.read_bytes()
    command.run(key, "rotate-master", "--volume", small.volume.backing, *UNLOCK)
    command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    assert standby.keystore.read_bytes() == before
    assert list(load_keystore(standby.keystore).unlock(CommandProtector(KEY_COMMAND))) == list(small.ring)


def test_file_of_one_volume_is_read_in_the_other(standby: Standby, small: SmallVolume, command: Command) -> None:
    """So a cold copy of the primary's directory serves where the standby's keystore is."""
    small.encrypt("base/5/16384", b"content")
    standby.init()
    (standby.backing / "data" / "base/5").mkdir(parents=True)
    shutil.copy(small.path("base/5/16384"), standby.backing / "data" / "base/5/16384")
    assert command.run(cat, "base/5/16384", "--volume", standby.backing, *UNLOCK)[1] == "content"


def test_copy_has_a_history_of_its_own_that_is_whole(
    standby: Standby, small: SmallVolume, command: Command
) -> None:
    command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    standby.init()
    found = standby.history()
    assert (found["checked"], found["findings"], found["notes"]) == (True, [], [])
    assert [record["event"] for record in found["records"]] == ["keystore copy", "unlock", "unlock"]
    assert found["records"][0]["what"] == {
        "from": str(standby.original),
        "from_revision": 2,
        "from_records": 2,
        "revision": 3,
    }
    command.run(key, "rotate", "dk_1", "--volume", standby.backing, *UNLOCK)
    assert standby.history()["findings"] == []
    # a record of the original is none of the copy's: their MACs have different keys
    history_path(standby.keystore).write_bytes(history_path(standby.original).read_bytes())
    with pytest.raises(TdefsError) as caught:
        standby.history()
    assert caught.value.exit_code == Exit.HISTORY_BROKEN


def test_files_of_the_key_command_come_along(standby: Standby, tmp_path: Path, command: Command) -> None:
    words = ("--key-command", "test -f %d/key || openssl rand -hex 32 > %d/key; cat %d/key")
    source = tmp_path / "first.keystore"
    command.run(init, tmp_path / "first", "--keystore", source, *words)
    said = standby.init(*words, source=source)
    assert (command_directory(standby.keystore) / "key").read_bytes() == (
        command_directory(source) / "key"
    ).read_bytes()
    assert f"The same holds for {command_directory(standby.keystore)}" in said
    # a directory that is there already is nobody's to overwrite, nor to remove
    shutil.rmtree(standby.backing)
    for path in (standby.keystore, history_path(standby.keystore)):
        path.unlink()
    assert standby.refused(*words, source=source).exit_code == Exit.VOLUME_EXISTS
    assert (command_directory(standby.keystore) / "key").exists()


def test_refused_copy_leaves_nothing(standby: Standby, tmp_path: Path) -> None:
    assert standby.refused("--key-command", "printf %%064d 9").exit_code == Exit.WRONG_SECRET
    assert standby.refused(source=tmp_path / "none").exit_code == Exit.KEYSTORE_MISSING
    assert not standby.keystore.exists()
    history_path(standby.keystore).write_text("of another one")
    assert standby.refused().exit_code == Exit.VOLUME_EXISTS
    history_path(standby.keystore).unlink()
    standby.original.chmod(0o644)
    assert standby.refused().exit_code == Exit.KEYSTORE_EXPOSED
    standby.original.chmod(0o600)
    standby.init()


def test_failure_at_the_end_leaves_nothing(standby: Standby, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("tdefs.cli.init.save_volume", "tdefs.keys.keystore.copy.append"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(OSError, match="No space"):
                standby.init()
        assert not standby.keystore.exists()
        assert not history_path(standby.keystore).exists()
        assert not (standby.backing / ".tdefs").exists()

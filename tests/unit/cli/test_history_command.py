"""What the history of a keystore tells of the commands.

Covers tdefs/cli/key/history.py and tdefs/cli/common/unlocking.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import cat, init
from tdefs.cli.key import command as key
from tdefs.cli.protector import command as protector
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.history import history_path
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)
WRONG = ("--key-command", "printf %%064d 9")


def history(small: SmallVolume, command: Command, *words: str) -> dict[str, Any]:
    found = command.json(key, "history", "--volume", small.volume.backing, *(words or UNLOCK))
    assert isinstance(found, dict)
    return found


def events(found: dict[str, Any]) -> list[str]:
    return [record["event"] for record in found["records"]]


def test_every_kind_of_event_is_in_the_history(small: SmallVolume, command: Command) -> None:
    small.encrypt("file", b"content")
    volume = ("--volume", small.volume.backing)
    command.run(cat, "file", "--volume", small.volume.backing, *UNLOCK)
    with pytest.raises(TdefsError):
        command.run(cat, "file", "--volume", small.volume.backing, *WRONG)
    command.run(protector, "add", *volume, *UNLOCK, "--recovery-code", "--label", "safe")
    command.run(protector, "remove", "pr_2", *volume, *UNLOCK)
    for action in (("create", "dk_3"), ("rotate", "dk_3"), ("revoke", "dk_3"), ("destroy", "dk_3")):
        command.run(key, *action, *volume, *UNLOCK)
    command.run(key, "rotate-master", *volume, *UNLOCK)
    found = history(small, command)
    assert (found["checked"], found["findings"], found["notes"]) == (True, [], [])
    assert [event for event in events(found) if event != "unlock"] == [
        "unlock failed",
        *("protector add", "protector remove"),
        *("key create", "key rotate", "key revoke", "key destroy", "key rotate-master"),
    ]
    by_event = {record["event"]: record["what"] for record in found["records"]}
    assert by_event["unlock failed"] == {"command": "cat", "error": "WRONG_SECRET"}
    assert by_event["protector add"] == {
        "protector": "pr_2",
        "kind": "recovery-code",
        "label": "safe",
        "revision": 2,
    }
    assert by_event["key destroy"] == {"key": "dk_3", "files": 0, "revision": 7}
    assert found["records"][0]["what"] == {"command": "cat", "protector": "pr_1"}
    text = history_path(small.volume.keystore).read_text()
    for one in small.ring:
        assert one.secret.hex() not in text
    assert "7" * 64 not in text


def test_history_begins_with_init(tmp_path: Path, command: Command) -> None:
    command.run(init, tmp_path / "volume", *UNLOCK)
    found = command.json(key, "history", "--volume", tmp_path / "volume", *UNLOCK)
    assert [record["what"]["command"] for record in found["records"]] == ["init", "key history"]
    assert events(found) == ["keystore create", "unlock"]
    assert found["records"][0]["what"]["keys"] == "dk_1"


def test_init_takes_from_the_configuration_what_it_is_not_told(tmp_path: Path, command: Command) -> None:
    config, keystore = tmp_path / "tdefs.yaml", tmp_path / "elsewhere"
    config.write_text(
        f'version: 1\nvolumes:\n  {tmp_path}/volume:\n    keystore: {keystore}\n    key_command: "{UNLOCK[1]}"\n'
    )
    command.run(init, tmp_path / "volume", "--config", config)
    assert "dk_1" in command.run(key, "verify", "--volume", tmp_path / "volume", *UNLOCK)[1]
    assert keystore.exists()


def test_history_of_one_key_has_what_was_done_with_it(tmp_path: Path, command: Command) -> None:
    place = ("--volume", tmp_path / "volume")
    command.run(init, place[1], *UNLOCK)
    command.run(key, "create", "dk_2", *place, *UNLOCK)
    command.run(key, "rotate", "dk_1", *place, *UNLOCK)
    found = command.json(key, "history", "--key", "dk_1", *place, *UNLOCK)
    assert events(found) == ["keystore create", "key rotate"]
    with pytest.raises(TdefsError) as caught:
        command.run(key, "history", "--key", "dk_9", *place, *UNLOCK)
    assert caught.value.exit_code == Exit.DATA_KEY_UNKNOWN
    assert (found["checked"], found["findings"]) == (True, [])


def test_refused_change_is_written_down(small: SmallVolume, command: Command) -> None:
    place = ("--volume", small.volume.backing)
    with pytest.raises(TdefsError):
        command.run(protector, "remove", "pr_1", *place, *UNLOCK)
    with pytest.raises(TdefsError):
        command.run(key, "create", "dk_1", *place, *UNLOCK)
    with pytest.raises(TdefsError):
        command.run(key, "revoke", "dk_1", "--round", "7", *place, *UNLOCK)
    with pytest.raises(
        TdefsError
    ):  # what is no name is not written down: it may be a passphrase in the wrong place
        command.run(key, "rotate", "correct horse", *place, *UNLOCK)
    found = history(small, command)
    refused = [(one["event"], one["what"]) for one in found["records"] if one["event"] != "unlock"]
    assert refused == [
        ("protector remove refused", {"protector": "pr_1", "error": "LAST_PROTECTOR"}),
        ("key create refused", {"key": "dk_1", "error": "DATA_KEY_EXISTS"}),
        ("key revoke refused", {"key": "dk_1", "round": 7, "error": "DATA_KEY_UNKNOWN"}),
        ("key rotate refused", {"error": "DATA_KEY_UNKNOWN"}),
    ]
    assert found["findings"] == []


def test_repair_is_written_down_with_what_it_found(small: SmallVolume, command: Command) -> None:
    command.run(key, "repair", "--volume", small.volume.backing)
    small.volume.keystore.with_name("keystore.new").write_bytes(b"torn")
    command.run(key, "repair", "--volume", small.volume.backing)
    found = history(small, command)
    assert events(found) == ["key repair", "unlock"]
    assert '"keystore.new", which was incomplete, is removed' in found["records"][0]["what"]["found"].replace(
        f"{small.volume.keystore.parent}/", ""
    )
    assert found["findings"] == []


def test_removed_record_is_an_error_of_its_own(small: SmallVolume, command: Command) -> None:
    command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    path = history_path(small.volume.keystore)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(TdefsError) as caught:
        command.run(key, "history", "--volume", small.volume.backing, *UNLOCK)
    assert caught.value.exit_code == Exit.HISTORY_BROKEN
    path.unlink()
    with pytest.raises(TdefsError) as caught:
        command.run(key, "history", "--volume", small.volume.backing, *UNLOCK)
    assert "there were 2 when the keystore was last changed" in caught.value.detail


def test_unlock_removed_from_the_end_stays_an_error_until_a_change_tells_of_it(
    small: SmallVolume, command: Command
) -> None:
    place = ("--volume", small.volume.backing, *UNLOCK)
    for work in ("history", "verify"):
        command.run(key, work, *place)
    path = history_path(small.volume.keystore)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    for _ in range(2):
        with pytest.raises(TdefsError) as caught:
            command.run(key, "history", *place)
        assert caught.value.exit_code == Exit.HISTORY_BROKEN
    command.run(key, "rotate", "dk_1", *place)
    assert "the history is not as it was written" in command.errors
    assert history(small, command)["findings"] == []


def test_history_is_shown_without_a_secret_but_not_checked(small: SmallVolume, command: Command) -> None:
    command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    found = history(small, command, "--unchecked")
    assert (found["checked"], events(found)) == (False, ["unlock", "key rotate"])
    code, text = command.run(key, "history", "--unchecked", "--volume", small.volume.backing)
    assert (code, text.splitlines()[-1]) == (0, "not checked")


def test_control_characters_in_the_history_do_not_reach_the_terminal(small: SmallVolume, command: Command) -> None:
    line = {"n": 1, "time": "x", "event": "\x1b[2J", "who": {}, "what": {}}
    history_path(small.volume.keystore).write_text(json.dumps(line)[:-1] + ',"mac":null}\n')
    _, text = command.run(key, "history", "--unchecked", "--volume", small.volume.backing)
    assert "\x1b" not in text


def test_history_that_cannot_be_written_does_not_keep_a_volume_locked(
    small: SmallVolume, command: Command
) -> None:
    small.encrypt("file", b"content")
    history_path(small.volume.keystore).mkdir()
    assert command.run(cat, "file", "--volume", small.volume.backing, *UNLOCK)[1] == "content"
    assert "history cannot be written" in command.errors
    before = small.volume.keystore.read_bytes()
    with pytest.raises(TdefsError, match="it is a directory"):
        command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    assert small.volume.keystore.read_bytes() == before


def test_failed_change_is_written_down_as_failed(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tdefs.keys.keystore.transaction._write", full)
        with pytest.raises(OSError, match="No space"):
            command.run(key, "rotate", "dk_1", "--volume", small.volume.backing, *UNLOCK)
    found = history(small, command)
    assert events(found) == ["unlock", "key rotate", "key rotate failed", "unlock"]
    assert found["findings"] == []
    assert found["records"][2]["what"] == {"key": "dk_1", "error": "OS_ERROR"}
    assert "record 2 was stopped" in found["notes"][0]


def test_change_after_records_were_removed_tells_of_them_for_ever(small: SmallVolume, command: Command) -> None:
    """Nor does a keystore that was copied without its history look broken for ever: what it lacks is noted."""
    volume = ("--volume", small.volume.backing)
    command.run(key, "rotate", "dk_1", *volume, *UNLOCK)
    history_path(small.volume.keystore).unlink()
    command.run(key, "rotate", "dk_1", *volume, *UNLOCK)
    lack = "there are 1 records, and there were 2 when the keystore was last changed"
    assert f"the history is not as it was written: {lack}" in command.errors
    found = history(small, command)
    assert found["records"][1]["what"] == {"key": "dk_1", "lacking": lack, "revision": 3}
    assert f"before record 2 the history was not as it was written: {lack}" in found["notes"]
    assert found["findings"] == []
    command.run(key, "rotate", "dk_1", *volume, *UNLOCK)
    assert command.errors == ""

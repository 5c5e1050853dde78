"""What ``tdefs protector`` does to a keystore and tells of it. Covers tdefs/cli/protector/command.py."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import cat
from tdefs.cli.protector import command as protector
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.protectors.command import CommandProtector
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS
from tests.unit.cli.volume_command import VolumeCommand

NEW_KEY_COMMAND = "printf %%064d 8"
UNLOCK = ("--key-command", KEY_COMMAND)
#: A new passphrase that takes no time.
CHEAP = ("--scrypt-cost", "14")
UNLOCK_NEW = ("--key-command", NEW_KEY_COMMAND)


class Protectors(VolumeCommand):
    """``tdefs protector`` on one volume."""

    module = protector

    def listed(self) -> list[dict[str, Any]]:
        found = self._command.json(protector, "list", "--volume", self.small.volume.backing)
        assert isinstance(found, list)
        return found

    def opens(self, key_command: str) -> bool:
        try:
            ring = load_keystore(self.small.volume.keystore).unlock(CommandProtector(key_command))
        except TdefsError:
            return False
        return list(ring) == list(self.small.ring)


@pytest.fixture
def protectors(small: SmallVolume, command: Command) -> Protectors:
    return Protectors(small, command)


def test_added_protector_opens_beside_the_old_one(protectors: Protectors) -> None:
    said = protectors.run("add", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND, "--label", "key server B")
    assert said == "protector pr_2 (command) is added\n"
    assert protectors.opens(KEY_COMMAND)
    assert protectors.opens(NEW_KEY_COMMAND)
    assert [(one["id"], one["kind"], one["label"]) for one in protectors.listed()] == [
        ("pr_1", "command", ""),
        ("pr_2", "command", "key server B"),
    ]
    table = protectors.run("list")
    assert re.search(r"^pr_2 +command +key server B +20", table, re.MULTILINE)


def test_key_command_finds_its_files_again_beside_a_keystore_by_way_of_a_symbolic_link(
    protectors: Protectors, tmp_path: Path
) -> None:
    keystore = protectors.small.volume.keystore
    target = tmp_path / "safe"
    target.mkdir()
    keystore.rename(target / "keystore")
    (tmp_path / "link").symlink_to(target)
    keeps = "[ -e %d/key ] || od -An -N 32 -v -t x1 /dev/urandom | tr -d ' \\n' >%d/key; cat %d/key"
    by_link = ("--keystore", tmp_path / "link" / "keystore")
    protectors.run("add", *UNLOCK, "--new-key-command", keeps, *by_link)
    protectors.run("test", "--key-command", keeps, "--id", "pr_2", *by_link)


def test_changed_secret_replaces_the_old_one(protectors: Protectors) -> None:
    said = protectors.run("change", "pr_1", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND)
    assert "the old one does not open it any more" in said
    assert not protectors.opens(KEY_COMMAND)
    assert protectors.opens(NEW_KEY_COMMAND)


def test_label_changes_and_the_secret_stays(protectors: Protectors) -> None:
    protectors.run("add", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND, "--label", "b")
    # by one secret, the label of the protector of another
    said = protectors.run("label", "pr_2", "rack 4", *UNLOCK)
    assert said == 'protector pr_2 has the label "rack 4"\n'
    assert [one["label"] for one in protectors.listed()] == ["", "rack 4"]
    assert protectors.opens(KEY_COMMAND)
    assert protectors.opens(NEW_KEY_COMMAND)
    assert protectors.run("label", "pr_2", "", *UNLOCK_NEW) == "protector pr_2 has no label\n"
    assert [one["label"] for one in protectors.listed()] == ["", ""]
    for id, label, code in (
        ("pr_7", "x", Exit.PROTECTOR_UNKNOWN),
        ("pr_1", "x" * 64, Exit.USAGE),
        ("pr_1", "\n", Exit.USAGE),
    ):
        assert protectors.refused("label", id, label, *UNLOCK).exit_code == code


def test_passphrase_comes_from_a_file_or_a_descriptor(protectors: Protectors, tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("correct horse battery staple\n")
    protectors.run("change", "pr_1", *UNLOCK, "--new-passphrase-file", file, *CHEAP)
    assert [one["kind"] for one in protectors.listed()] == ["passphrase"]
    descriptor = os.open(file, os.O_RDONLY)
    protectors.run("add", "--passphrase-file", file, "--new-passphrase-fd", str(descriptor), *CHEAP)
    assert [one["kind"] for one in protectors.listed()] == ["passphrase"] * 2


def test_new_passphrase_comes_from_a_credential(
    protectors: Protectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "pg").write_text("correct horse battery staple\n")
    protectors.run("add", *UNLOCK, "--new-passphrase-credential", "pg", *CHEAP)
    protectors.run("change", "pr_1", *UNLOCK, "--new-passphrase-credential", "pg", *CHEAP)
    assert [one["kind"] for one in protectors.listed()] == ["passphrase"] * 2
    protectors.run("test", "--passphrase-file", tmp_path / "pg", "--id", "pr_1")
    error = protectors.refused("add", "--passphrase-credential", "pg", "--new-passphrase-credential", "other")
    assert error.exit_code == Exit.NO_SECRET
    assert 'no credential "other"' in error.message


def test_protector_can_be_removed_with_its_own_secret_but_not_the_last(protectors: Protectors) -> None:
    assert protectors.refused("remove", "pr_1", *UNLOCK).exit_code == Exit.LAST_PROTECTOR
    protectors.run("add", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND)
    said = protectors.run("remove", "pr_1", *UNLOCK)
    assert said == "protector pr_1 (command) is removed; left: pr_2 (command)\n"
    assert not protectors.opens(KEY_COMMAND)
    assert protectors.opens(NEW_KEY_COMMAND)
    assert protectors.refused("remove", "pr_2", *UNLOCK_NEW).exit_code == Exit.LAST_PROTECTOR
    assert protectors.refused("remove", "pr_7", *UNLOCK_NEW).exit_code == Exit.PROTECTOR_UNKNOWN


def test_wrong_secret_changes_nothing(protectors: Protectors) -> None:
    for action, words in (
        ("add", ("--new-key-command", NEW_KEY_COMMAND)),
        ("change", ("pr_1", "--new-key-command", NEW_KEY_COMMAND)),
        ("remove", ("pr_1",)),
    ):
        assert protectors.refused(action, *words, *UNLOCK_NEW).exit_code == Exit.WRONG_SECRET


def test_new_key_command_asks_on_the_terminal_beside_an_old_secret_that_does_not(
    protectors: Protectors, tmp_path: Path
) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    passphrase.chmod(0o600)
    protectors.run("add", *UNLOCK, "--new-passphrase-file", passphrase, *CHEAP)
    place = ("--volume", protectors.small.volume.backing, "--passphrase-file", passphrase)
    asking = "printf 'PIN: ' >&%R; read -r pin <&%R; printf %%064d $pin"
    with Terminal([TDEFS, "protector", "change", "pr_1", *place, "--new-key-command", asking, "-R"]) as terminal:
        for _ in range(2):
            terminal.expect("PIN: ")
            terminal.press("8\n")
        assert terminal.end()[0] == Exit.OK, terminal.shown
    assert protectors.opens(NEW_KEY_COMMAND)


def test_new_secret_that_fails_changes_nothing(protectors: Protectors) -> None:
    error = protectors.refused("change", "pr_1", *UNLOCK, "--new-key-command", "exit 3")
    assert error.exit_code == Exit.KEY_COMMAND_FAILED
    error = protectors.refused("add", *UNLOCK, "--new-passphrase-file", "/dev/null")
    assert error.exit_code == Exit.NO_SECRET


def test_test_says_which_protector_the_secret_opens(protectors: Protectors) -> None:
    protectors.run("add", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND, "--label", "b")
    protectors.run("add", *UNLOCK, "--recovery-code")
    table = protectors.run("test", *UNLOCK_NEW)
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["open", "opens", "kind"]
    protectors.run("test", "--id", "pr_2", *UNLOCK_NEW)
    assert protectors.refused("test", "--id", "pr_1", *UNLOCK_NEW).exit_code == Exit.WRONG_SECRET
    error = protectors.refused("test", "--key-command", "printf %%064d 9")
    assert error.exit_code == Exit.WRONG_SECRET
    assert error.message == "the key command does not open any protector"


def recovery_code(said: str) -> str:
    found = re.search(r"^ +((?:[0-9A-Z]{6}-){6}[0-9A-Z]{6})$", said, re.MULTILINE)
    assert found is not None
    return found[1]


def test_recovery_code_is_printed_once_and_unlocks(
    protectors: Protectors, command: Command, tmp_path: Path
) -> None:
    protectors.small.encrypt("base/5/16384", b"content")
    said = protectors.run("add", *UNLOCK, "--recovery-code", "--label", "safe")
    code = recovery_code(said)
    assert said.endswith("protector pr_2 (recovery-code) is added\n")
    assert code not in protectors.small.volume.keystore.read_text()
    file = tmp_path / "code"
    file.write_text(code.lower() + "\n")
    backing = protectors.small.volume.backing
    protectors.run("test", "--id", "pr_2", "--recovery-code-file", file)
    # it may also be what is left when all else is lost
    protectors.run("change", "pr_1", "--recovery-code-file", file, "--new-key-command", NEW_KEY_COMMAND)
    assert protectors.opens(NEW_KEY_COMMAND)
    file.write_text(code[:-1] + ("0" if code[-1] != "0" else "2"))
    with pytest.raises(TdefsError) as caught:
        command.run(cat, "base/5/16384", "--volume", backing, "--recovery-code-file", file)
    assert caught.value.exit_code == Exit.RECOVERY_CODE_MISTYPED
    assert caught.value.detail == "group 7 is wrong"


def test_lost_code_is_replaced_by_a_new_one(protectors: Protectors, tmp_path: Path) -> None:
    old = recovery_code(protectors.run("add", *UNLOCK, "--recovery-code"))
    new = recovery_code(protectors.run("change", "pr_2", *UNLOCK, "--new-recovery-code"))
    file = tmp_path / "code"
    file.write_text(old)
    assert protectors.refused("test", "--recovery-code-file", file).exit_code == Exit.WRONG_SECRET
    file.write_text(new)
    protectors.run("test", "--recovery-code-file", file)


def test_what_a_stopped_change_left_is_removed_and_told(protectors: Protectors, command: Command) -> None:
    new = protectors.small.volume.keystore.with_name("keystore.new")
    new.write_bytes(b"torn")
    protectors.run("add", *UNLOCK, "--new-key-command", NEW_KEY_COMMAND)
    assert "stopped before it took effect" in command.errors
    assert not new.exists()

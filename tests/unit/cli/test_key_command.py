"""What ``tdefs key`` does to a keystore and tells of it. Covers tdefs/cli/key/*.py and daemon_keys.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdefs import control
from tdefs.cli import cat, ls, mount, verify
from tdefs.cli.common import daemon_keys
from tdefs.cli.key import command as key
from tdefs.cli.policy import command as policy_command
from tdefs.daemon.status import KeyStatus
from tdefs.data.forms import Expectations, FileForms
from tdefs.errors import Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.text import serialise
from tdefs.keys.keystore.transaction import KeystoreChange
from tdefs.keys.keystore.wrapped_keys import sign
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.ring_message import RingRefusedError, decrypt_ring
from tests.support.daemon_status import daemon_status
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume
from tests.unit.cli.volume_command import VolumeCommand

UNLOCK = ("--key-command", KEY_COMMAND)


class Keys(VolumeCommand):
    """``tdefs key`` on one volume."""

    module = key

    def ring(self) -> KeyRing:
        return load_keystore(self.small.volume.keystore).unlock(CommandProtector(KEY_COMMAND))

    def use(self) -> None:
        """Have the volume's further files made with the keys as they are now."""
        volume = self.small.volume
        self.small.forms = FileForms(
            self.ring(), Expectations(volume.volume_id, plain_files=False, lost_headers=False)
        )

    def mount(self, mountpoint: Path, *words: str | Path) -> None:
        self._command.run(mount, self.small.volume.backing, mountpoint, *words, *UNLOCK)

    def read(self, path: str) -> str:
        return self._command.run(cat, path, "--volume", self.small.volume.backing, *UNLOCK)[1]


@pytest.fixture
def keys(small: SmallVolume, command: Command) -> Keys:
    return Keys(small, command)


class Daemon:
    """The daemon's side of the control socket, as tdefs/daemon/session.py answers."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.silent = False
        self.asked: list[str] = []

    def ask(self, volume: object, name: str, *, only_of: object = None, **more: Any) -> dict[str, Any] | None:
        self.asked.append(name)
        if self.silent:
            return None
        if name == "status":
            held = tuple(KeyStatus(one.name, one.round, one.algorithm, "active") for one in self.ring)
            return daemon_status(keystore_revision=self.ring.revision, data_keys=held).to_json()
        return self._use(json.loads(json.dumps(more)))

    def _use(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self.ring = decrypt_ring(message, self.ring)
        except RingRefusedError as error:
            return {"refused": str(error)}
        return {"keystore_revision": self.ring.revision}


@pytest.fixture
def daemon(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A daemon that has the volume mounted."""
    daemon = Daemon(keys.ring())
    monkeypatch.setattr(daemon_keys, "is_in_use", lambda volume: True)
    monkeypatch.setattr(daemon_keys, "ask", daemon.ask)
    monkeypatch.setattr(control, "ask", daemon.ask)
    monkeypatch.setattr(daemon_keys, "_PATIENCE_SECONDS", 0.3)
    return daemon


def test_created_key_is_there_and_known_to_the_daemon(keys: Keys, daemon: Daemon) -> None:
    said = keys.run("create", "payroll", *UNLOCK)
    assert said == "data key payroll is created (aes-256-xts), protected by mk_1\n"
    assert daemon.ring.names() == ["dk_1", "dk_2", "payroll"]
    assert list(daemon.ring) == list(keys.ring())
    assert keys.refused("create", "payroll", *UNLOCK).exit_code == Exit.DATA_KEY_EXISTS


def test_new_round_is_known_to_the_daemon_and_old_files_stay_readable(keys: Keys, daemon: Daemon) -> None:
    keys.small.encrypt("base/5/16384", b"old")
    said = keys.run("rotate", "dk_1", *UNLOCK)
    assert "new round 2" in said
    assert daemon.ring.current("dk_1") == keys.ring().get("dk_1", 2)
    keys.use()
    keys.small.encrypt("base/5/16385", b"new")
    assert (keys.read("base/5/16384"), keys.read("base/5/16385")) == ("old", "new")
    shown = json.loads(keys.run("show", "dk_1", "--json"))
    assert [(one["round"], one["files"]) for one in shown["rounds"]] == [(1, 1), (2, 1)]


def test_revoke_lists_the_files_that_use_the_key(keys: Keys, daemon: Daemon) -> None:
    keys.small.encrypt("base/5/16384", b"old")
    keys.run("rotate", "dk_1", *UNLOCK)
    said = keys.run("revoke", "dk_1", "--round", "1", *UNLOCK)
    assert said.splitlines() == [
        "no new file may use round 1 of data key dk_1",
        "1 file uses it:",
        "    base/5/16384",
    ]
    assert ("dk_1", 1) in daemon.ring.revoked
    assert keys.read("base/5/16384") == "old"
    listed = json.loads(keys.run("list", "--json"))
    states = [(one["round"], one["state"]) for one in listed["data_keys"][0]["rounds"]]
    assert states == [(1, "revoked"), (2, "active")]


def accept(keys: Keys, *words: str | Path) -> None:
    """``tdefs policy accept`` on the volume."""
    keys._command.run(policy_command, "accept", "--volume", keys.small.volume.backing, *words, *UNLOCK)


def test_key_that_new_files_need_is_not_revoked(keys: Keys, tmp_path: Path) -> None:
    assert keys.refused("revoke", "dk_1", *UNLOCK).exit_code == Exit.DATA_KEY_NEEDED
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\ndefault: dk_1\nkinds:\n  wal: dk_2\n")
    accept(keys, "--policy", policy, "--yes")
    error = keys.refused("revoke", "dk_2", *UNLOCK)
    assert error.exit_code == Exit.DATA_KEY_NEEDED
    assert "the policy names data key dk_2" in error.message
    accept(keys, "--no-policy")
    keys.run("revoke", "dk_2", *UNLOCK)


def test_policy_that_names_a_revoked_key_is_not_accepted(keys: Keys, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\ndefault: dk_1\nkinds:\n  wal: dk_2\n")
    keys.run("revoke", "dk_2", *UNLOCK)
    with pytest.raises(TdefsError) as caught:
        accept(keys, "--policy", policy)
    assert caught.value.exit_code == Exit.DATA_KEY_REVOKED
    assert "data key dk_2 is revoked" in caught.value.message


def test_key_in_use_is_destroyed_only_by_a_confirmation_that_names_it(keys: Keys, daemon: Daemon) -> None:
    keys.small.encrypt("base/5/16384", b"lost", key="dk_2")
    keys.small.encrypt("base/5/16385", b"kept", key="dk_1")
    assert keys.refused("destroy", "dk_2", *UNLOCK).exit_code == Exit.DATA_KEY_NEEDED  # not revoked
    keys.run("revoke", "dk_2", *UNLOCK)
    error = keys.refused("destroy", "dk_2", *UNLOCK)
    assert error.exit_code == Exit.DATA_KEY_NEEDED
    assert error.message.startswith("1 files use round 1 of data key dk_2")
    assert error.detail == "base/5/16384"
    assert keys.refused("destroy", "dk_2", "--destroy-files-of", "dk_1", *UNLOCK).detail == "base/5/16384"
    assert keys.read("base/5/16384") == "lost"
    said = keys.run("destroy", "dk_2", "--destroy-files-of", "dk_2", *UNLOCK)
    assert said.startswith("round 1 of data key dk_2 is destroyed; 1 files became unreadable")
    assert daemon.ring.destroyed.keys() == {("dk_2", 1)}
    with pytest.raises(TdefsError) as caught:
        keys.read("base/5/16384")
    assert caught.value.exit_code == Exit.DATA_KEY_DESTROYED
    assert "was destroyed" in caught.value.message
    assert "backups of before the key was destroyed" in caught.value.hint
    assert keys.read("base/5/16385") == "kept"


def test_key_that_no_file_uses_is_destroyed_without_a_confirmation(keys: Keys) -> None:
    keys.run("rotate", "dk_1", *UNLOCK)
    keys.run("revoke", "dk_1", "--round", "1", *UNLOCK)
    said = keys.run("destroy", "dk_1", "--round", "1", *UNLOCK)
    assert "0 files became unreadable" in said
    assert [one.round for one in keys.ring() if one.name == "dk_1"] == [2]


def test_key_destroyed_before_is_not_said_to_be_destroyed_again(keys: Keys) -> None:
    keys.small.encrypt("base/5/16384", b"lost", key="dk_2")
    keys.run("revoke", "dk_2", *UNLOCK)
    keys.run("destroy", "dk_2", "--destroy-files-of", "dk_2", *UNLOCK)
    before = keys.small.volume.keystore.read_bytes()
    assert keys.run("destroy", "dk_2", *UNLOCK) == "round 1 of data key dk_2 was destroyed before\n"
    assert keys.small.volume.keystore.read_bytes() == before
    for change in ("rotate", "revoke"):
        keys.run(change, "dk_2", *UNLOCK)
    said = keys.run("destroy", "dk_2", *UNLOCK)  # the file lost above needs no confirmation any more
    assert said.startswith("round 2 of data key dk_2 is destroyed; 0 files became unreadable")


def test_file_that_cannot_be_looked_at_keeps_its_key(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.small.encrypt("base/5/16384", b"x", key="dk_1")
    keys.run("revoke", "dk_2", *UNLOCK)

    def denied(volume: object, path: str) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tdefs.offline.describing.open_without_links", denied)
    error = keys.refused("destroy", "dk_2", *UNLOCK)
    assert "1 more could not be looked at" in error.message


def test_verify_reports_files_of_a_destroyed_key_and_nothing_else(keys: Keys, command: Command) -> None:
    keys.small.encrypt("base/5/16384", b"x" * 8192, key="dk_2")
    keys.small.encrypt("other", b"kept", key="dk_1")
    keys.run("revoke", "dk_2", *UNLOCK)
    keys.run("destroy", "dk_2", "--destroy-files-of", "dk_2", *UNLOCK)
    found = command.json(verify, keys.small.volume.backing, *UNLOCK)
    assert [one["path"] for one in found["findings"]] == ["base/5/16384"]
    time = load_keystore(keys.small.volume.keystore).document.data_keys[1].rounds[0].destroyed
    assert time is not None
    assert found["findings"][0]["error"] == f"round 1 of data key dk_2 was destroyed at {show_time(time)}"
    assert (found["files"]["unreadable"], found["files"]["damaged"], found["files"]["encrypted"]) == (1, 0, 1)


def test_ls_shows_what_became_unreadable_with_its_key_and_why(keys: Keys, command: Command) -> None:
    keys.small.encrypt("lost", b"x", key="dk_2")
    keys.small.encrypt("other", b"kept", key="dk_1")
    keystore = keys.small.volume.keystore
    copy = keystore.with_name("copy")
    shutil.copy(keystore, copy)
    keys.run("revoke", "dk_2", *UNLOCK)
    keys.run("destroy", "dk_2", "--destroy-files-of", "dk_2", *UNLOCK)
    lost, other = command.json(ls, keys.small.volume.backing)
    assert (lost["state"], lost["encrypted"], lost["data_key"]) == ("unreadable", True, "dk_2")
    assert lost["error"].startswith("round 1 of data key dk_2 was destroyed at 20")
    assert (other["state"], other["encrypted"]) == ("encrypted", True)
    # the old copy of the keystore still has the key
    before, _ = command.json(ls, keys.small.volume.backing, "--keystore", copy)
    assert before["state"] == "encrypted"
    assert command.errors == ""


def test_ls_without_a_keystore_says_what_it_cannot_tell(keys: Keys, command: Command) -> None:
    keys.small.encrypt("file", b"x")
    keys.small.volume.keystore.unlink()
    (found,) = command.json(ls, keys.small.volume.backing)
    assert found["state"] == "encrypted"
    assert "warning: there is no keystore" in command.errors
    assert "whose data key was destroyed" in command.errors
    with pytest.raises(TdefsError) as caught:
        command.run(ls, keys.small.volume.backing, "--keystore", keys.small.volume.keystore)
    assert caught.value.exit_code == Exit.KEYSTORE_MISSING


def test_new_master_key_keeps_every_data_key(keys: Keys, daemon: Daemon) -> None:
    before = list(keys.ring())
    said = keys.run("rotate-master", *UNLOCK)
    assert said.startswith("the master key is mk_2 now")
    assert list(keys.ring()) == before == list(daemon.ring)
    listed = json.loads(keys.run("list", "--json"))
    assert [(one["name"], one["current"]) for one in listed["master_keys"]] == [("mk_1", False), ("mk_2", True)]


def test_verify_tells_of_each_protector_and_each_round(keys: Keys) -> None:
    with KeystoreChange(keys.small.volume.keystore, "test"):
        pass
    said = keys.run("verify", *UNLOCK)
    assert "opens mk_1 with the secret given" in said
    assert said.count("unwraps") == 2
    assert keys.refused("verify", "--key-command", "printf %%064d 9").exit_code == Exit.WRONG_SECRET
    # a protector whose way to the master key is spoilt, by someone who can make the MAC
    keystore = load_keystore(keys.small.volume.keystore)
    entry = keystore.document.protectors[0]
    unlocked = keystore.open(CommandProtector(KEY_COMMAND))
    spoilt = replace(keystore.document, protectors=(entry, replace(entry, id="pr_2")))
    keys.small.volume.keystore.write_bytes(serialise(sign(spoilt, unlocked.master)))
    error = keys.refused("verify", *UNLOCK)
    assert error.exit_code == Exit.KEYSTORE_DAMAGED
    assert error.message == "not all of the keystore can be unwrapped now"


def test_daemon_that_cannot_be_told_is_an_error_of_its_own(keys: Keys, daemon: Daemon, command: Command) -> None:
    daemon.silent = True
    with pytest.raises(TdefsError) as caught:
        keys.run("rotate", "dk_1", *UNLOCK)
    assert caught.value.exit_code == Exit.DAEMON_NOT_TOLD
    # the keystore has the round, the daemon can be told later
    assert keys.ring().current("dk_1").round == 2
    daemon.silent = False
    assert keys.run("reload", *UNLOCK) == "the daemon uses revision 2 of the keystore\n"
    assert daemon.ring.current("dk_1").round == 2


def test_key_is_not_destroyed_while_the_daemon_may_use_it(keys: Keys, daemon: Daemon) -> None:
    keys.run("revoke", "dk_2", *UNLOCK)
    daemon.silent = True
    assert keys.refused("destroy", "dk_2", *UNLOCK).exit_code == Exit.DAEMON_NOT_TOLD


def test_reload_of_a_volume_that_is_not_mounted_says_so(keys: Keys) -> None:
    assert keys.refused("reload", *UNLOCK).exit_code == Exit.NOT_MOUNTED


def test_repair_says_that_there_is_nothing_or_what_it_did(keys: Keys) -> None:
    """Without a secret; and it changes no key."""
    keystore = keys.small.volume.keystore
    before = keystore.read_bytes()
    assert keys.run("repair") == "nothing was left by a stopped change, and the keystore is whole\n"
    keystore.with_name("keystore.new").write_bytes(b"torn")
    said = keys.run("repair")
    assert f'"{keystore.with_name("keystore.new")}", which was incomplete, is removed' in said
    assert "the keystore is as it was before (revision 1)" in said
    assert not keystore.with_name("keystore.new").exists()
    assert keystore.read_bytes() == before

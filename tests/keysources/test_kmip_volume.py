"""A volume whose keystore a KMIP server unlocks, driven by the command line as a DBA would."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
import yaml

from tdefs.cli.main import build_parser
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore import transaction
from tests.keysources.kmip_scene import KmipScene
from tests.support.volume import Volume
from tests.support.workspace import Workspace


class KmipVolume(Volume):
    """A volume that is unlocked by the key source kms1."""

    def __init__(self, root: Path, scene: KmipScene) -> None:
        super().__init__(root)
        self.config = root / "tdefs.yaml"
        self.describe(scene)

    def describe(self, scene: KmipScene, **changes: str) -> None:
        """Writes the configuration."""
        fields = scene.cluster_fields(patience_seconds="2", **changes)
        command = {"kind": "command-of-nobody"}
        text = {"version": 1, "log_level": "debug", "key_sources": {"kms1": fields, "other": command}}
        self.config.write_text(yaml.safe_dump(text))

    def tdefs(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command of tdefs, in this process where that makes no difference, which saves its start."""
        command = list(map(str, words))
        if command[0] in ("mount", "umount"):
            return super().tdefs(*words, check=check)
        with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
            args = build_parser().parse_args(command)
            try:
                code = args.run(args)
            except TdefsError as error:
                print(error.render(), file=errors)
                code = error.exit_code
        done = subprocess.CompletedProcess(command, code, output.getvalue(), errors.getvalue())
        said = f"$ {command}\n{done.stdout}{done.stderr}exit code {code}\n"
        with self.log.open("a") as log:
            log.write(said)
        assert not check or code == 0, said
        return done

    @property
    def unlock(self) -> list[str]:
        return ["--key-source", "kms1", "--config", str(self.config)]

    def key_source(self, *words: str | Path, code: int = 0) -> str:
        """Runs a sub-command of key-source; returns what it prints, or the error."""
        done = self.tdefs("key-source", *words, "--config", self.config, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    def keys(self) -> dict[str, str]:
        """The states of the keys on the server."""
        listed = json.loads(self.key_source("keys", "kms1", "--json"))
        return {key["uid"]: key["state"] for key in listed}

    def at(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command on this volume that unlocks it."""
        done = self.tdefs(*words, "--volume", self.backing, *self.unlock, check=False)
        assert done.returncode == code, done.stderr
        return done


@pytest.fixture
def scene(scratch: Workspace) -> Iterator[KmipScene]:
    scene = KmipScene(scratch.directory("kmip"))
    scene.server()
    yield scene
    scene.stop_since()


@pytest.fixture
def volume(scratch: Workspace, scene: KmipScene) -> KmipVolume:
    volume = KmipVolume(scratch.directory("volume") / "volume", scene)
    scratch.volumes.append(volume)
    volume.init()
    return volume


def protectors(volume: KmipVolume) -> list[str]:
    listed = json.loads(volume.tdefs("protector", "list", "--volume", volume.backing, "--json").stdout)
    return [one["id"] for one in listed]


def test_an_outage_while_mounted_harms_nothing_and_the_next_mount_says_why_it_waits(
    volume: KmipVolume, scene: KmipScene
) -> None:
    volume.mount()
    (volume.mountpoint / "before").write_bytes(b"a" * 20000)
    scene.stop_all()
    (volume.mountpoint / "during").write_bytes(b"b" * 20000)
    assert (volume.mountpoint / "before").read_bytes() == b"a" * 20000
    volume.umount()

    started = time.monotonic()
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
    assert done.returncode == Exit.KEY_SERVER_UNREACHABLE
    assert time.monotonic() - started < 10
    assert "is not reachable: connection refused; trying again for up to 2 s" in done.stderr
    assert "unlock with another protector" in done.stderr

    scene.start_all()
    volume.mount()
    assert (volume.mountpoint / "during").read_bytes() == b"b" * 20000
    volume.umount()
    assert volume.complaints() == []
    # PyKMIP's libraries have some for their own authors
    assert "Warning" not in volume.log.read_text()


def test_no_key_is_in_any_log_and_the_doctor_tells_of_an_expired_certificate(
    volume: KmipVolume, scene: KmipScene
) -> None:
    volume.mount()
    words = ("doctor", volume.mountpoint, "--json", "--config", volume.config)

    def told() -> list[str]:
        found = json.loads(volume.tdefs(*words, check=False).stdout)
        return [one["what"] for one in found if "key source" in one["what"]]

    [unknown] = told()
    assert 'key source "other" cannot be used' in unknown
    expired = scene.authority.sign("expired", client=True, valid=timedelta(days=-1)).certificate
    volume.describe(scene, certificate=str(expired))
    assert any(f"client certificate {expired} expired on" in what for what in told())
    assert volume.tdefs(*words, check=False).returncode == Exit.DOCTOR_FOUND_RISKS
    volume.umount()

    said = volume.log.read_bytes()
    [secret] = scene.database.secrets()
    assert b"DEBUG" in said
    for form in (secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret).encode()[2:-1]):
        assert form not in said
        assert form not in volume.keystore.read_bytes()


def test_keys_are_created_registered_activated_revoked_and_destroyed(volume: KmipVolume) -> None:
    [own] = volume.keys()
    created = volume.key_source("create", "kms1", "--name", "by hand").split()[1]
    key_file = volume.root / "kek"
    key_file.touch(0o644)
    key_file.write_text(os.urandom(32).hex() + "\n")
    assert "group or others have access to it" in volume.key_source(
        "register", "kms1", "--key-file", key_file, code=Exit.KEY_SOURCE_UNAVAILABLE
    )
    key_file.chmod(0o600)
    registered = volume.key_source("register", "kms1", "--key-file", key_file).split()[1]
    key_file.write_text("0" * 63)
    assert "0000" not in volume.key_source("register", "kms1", "--key-file", key_file, code=Exit.NO_SECRET)
    assert volume.keys() == {own: "active", created: "pre-active", registered: "pre-active"}

    volume.key_source("activate", "kms1", created)
    assert "revoke it first" in volume.key_source("destroy", "kms1", created, code=Exit.KEY_SERVER_REFUSED)
    volume.key_source("revoke", "kms1", created, "--reason", "key-compromise")
    assert volume.keys()[created] == "compromised"
    volume.key_source("destroy", "kms1", created)
    assert "by hand" not in volume.key_source("keys", "kms1")
    gone = volume.key_source("destroy", "kms1", created, code=Exit.WRAPPING_KEY_UNUSABLE)
    assert "has no such key" in gone


def test_a_source_whose_kind_does_not_exist_is_told(volume: KmipVolume) -> None:
    assert "no kind of key source" in volume.key_source("keys", "other", code=Exit.CONFIG_INVALID)


def test_a_revoked_and_a_destroyed_key_are_named_at_unlock(volume: KmipVolume) -> None:
    [uid] = volume.keys()
    volume.key_source("revoke", "kms1", uid)
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, check=False)
    assert done.returncode == Exit.WRAPPING_KEY_UNUSABLE
    assert f"the key {uid} on the key server is deactivated" in done.stderr
    assert "Traceback" not in done.stderr
    volume.key_source("destroy", "kms1", uid)
    assert "has no such key" in volume.at("key", "verify", code=Exit.WRAPPING_KEY_UNUSABLE).stderr


def test_protectors_come_and_go_with_their_keys(volume: KmipVolume, scene: KmipScene) -> None:
    [first] = volume.keys()
    assert "protector pr_1 (kmip) has a new key" in volume.at("key", "rotate-master").stdout
    volume.at("key", "verify")
    assert volume.keys() == {first: "active"}
    volume.at("protector", "add", "--new-key-source", "kms1")
    assert protectors(volume) == ["pr_1", "pr_2"]
    assert "opens" in volume.at("protector", "test", "--id", "pr_2").stdout
    assert len(volume.keys()) == 2

    # with the key of one protector revoked the other still unlocks
    volume.key_source("revoke", "kms1", first)
    tested = volume.at("protector", "test").stdout.splitlines()
    assert [line.rstrip().endswith("its wrapping key is unusable") for line in tested] == [False, True, False]
    done = volume.at("protector", "remove", "pr_1", "--destroy-wrapping-key")
    assert f"its wrapping key {first} is destroyed" in done.stdout
    assert protectors(volume) == ["pr_2"]
    [second] = volume.keys()
    assert second != first

    other = f"cat {volume.key_file}"
    volume.at("protector", "add", "--new-key-command", other)
    refused = volume.at("protector", "remove", "pr_3", "--destroy-wrapping-key", code=Exit.USAGE)
    assert "which key source" in refused.stderr
    assert protectors(volume) == ["pr_2", "pr_3"]

    # the server is gone: the protector can go, and what is left of it is told
    scene.stop_all()
    words = ("protector", "remove", "pr_2", "--destroy-wrapping-key", "--volume", volume.backing)
    done = volume.tdefs(*words, "--key-command", other, "--config", volume.config, check=False)
    assert done.returncode == Exit.KEY_SERVER_UNREACHABLE
    assert f"protector pr_2 is removed, but its wrapping key {second} is not destroyed" in done.stderr
    assert protectors(volume) == ["pr_3"]


def test_a_key_that_others_may_need_is_not_destroyed_with_a_protector(
    volume: KmipVolume, scene: KmipScene
) -> None:
    [shared] = volume.keys()
    volume.describe(scene, key_id=shared)
    volume.at("protector", "add", "--new-key-source", "kms1")
    refused = volume.at("protector", "remove", "pr_2", "--destroy-wrapping-key", code=Exit.USAGE)
    assert "was not made for it alone" in refused.stderr
    assert protectors(volume) == ["pr_1", "pr_2"]
    volume.at("protector", "remove", "pr_2")
    assert volume.keys() == {shared: "active"}


def test_a_tried_key_source_leaves_no_key_behind(volume: KmipVolume) -> None:
    before = volume.keys()
    assert "wraps and unwraps" in volume.key_source("test", "kms1")
    assert volume.keys() == before


def fail_to_save(monkeypatch: pytest.MonkeyPatch, before: Callable[[], object] = bool) -> None:
    def failing(*_: object) -> None:
        before()
        raise TdefsError(Exit.OS_ERROR, "no space left")

    monkeypatch.setattr(transaction, "_write", failing)


@pytest.mark.parametrize("words", [("add",), ("change", "pr_1")])
def test_key_made_for_a_protector_that_was_not_saved_is_destroyed(
    volume: KmipVolume, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    before = volume.keys()
    fail_to_save(monkeypatch)
    refused = volume.at("protector", *words, "--new-key-source", "kms1", code=Exit.OS_ERROR)
    assert volume.keys() == before
    assert "left behind" not in refused.stderr


def test_key_that_could_not_be_destroyed_is_named_with_the_commands_that_do(
    volume: KmipVolume, scene: KmipScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = volume.keys()
    fail_to_save(monkeypatch, scene.stop_all)
    refused = volume.at("protector", "add", "--new-key-source", "kms1", code=Exit.OS_ERROR).stderr
    scene.start_all()
    (left,) = volume.keys().keys() - before.keys()
    assert (
        f"warning: the key {left} on the key server of kms1, which this command has made, is left behind"
        in refused
    )
    commands = refused.partition("to remove it: ")[2].splitlines()[0]
    for command in commands.split(" && "):
        assert command.startswith("tdefs key-source ")
        volume.key_source(*command.split()[2:])
    assert volume.keys() == before


@pytest.mark.parametrize(
    "words",
    [
        ("protector", "test"),
        ("key", "verify"),
        ("key", "rotate-master"),
        ("protector", "add", "--new-key-source", "kms1"),
    ],
)
def test_each_warning_is_given_once(volume: KmipVolume, scene: KmipScene, words: tuple[str, ...]) -> None:
    (uid,) = volume.keys()
    volume.key_source("revoke", "kms1", uid)
    scene.server()
    volume.describe(scene, deactivated_key="unwrap")
    scene.stop_first()
    said = volume.at(*words).stderr
    assert said.count("is deactivated") == 1, said
    assert said.count("connection refused") == 1, said

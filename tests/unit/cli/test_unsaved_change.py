"""What a protector made elsewhere does not outlive a change that was not saved. Covers keystore/file.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tdefs.cli import auto_open, init
from tdefs.cli.common.secret_options import NewSecretOptions
from tdefs.cli.protector import command as protector
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore import transaction
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.protectors import this_host
from tdefs.keys.protectors.base import Made, Obtained, Parameters, Protector, WrongSecretError
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.keys.wrapping import WrapContext
from tdefs.private import OwnDirectory
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)


class Elsewhere(Protector):
    """Makes a file for each entry; ``broken`` says that it cannot be removed, ``kept`` that it must not."""

    kind = "elsewhere"
    words = "what is elsewhere"
    purpose = b"elsewhere"
    members = ("number",)

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self.broken = False
        self.kept = ""

    def obtain(self, context: WrapContext) -> Obtained:
        del context
        number = len(self.files()) + 1
        (self.directory / f"made.{number}").touch()
        return Obtained(bytes(32), {"number": number})

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        del params, context
        return bytes(32)

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(f"not of {params.entry_id}")

    def made(self, entry: ProtectorEntry) -> Made:
        return Made(f"the thing {entry.params['number']}", f"rm made.{entry.params['number']}", self.kept)

    def forget(self, entry: ProtectorEntry) -> None:
        if self.broken:
            raise TdefsError(Exit.KEY_SERVER_UNREACHABLE, "the server is away")
        (self.directory / f"made.{entry.params['number']}").unlink()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("made.*"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """The protector that all commands below take for the new one."""
    made = Elsewhere(tmp_path)
    monkeypatch.setattr(NewSecretOptions, "protector", lambda *_: (made, None))
    monkeypatch.setattr(init, "protector_of", lambda *_, confirm, cost: made)
    return made


def fail_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(transaction, "_write", full)


def run(small: SmallVolume, command: Command, *words: str) -> None:
    command.run(protector, *words, *UNLOCK, "--volume", small.volume.backing)


@pytest.mark.parametrize("words", [("add",), ("change", "pr_1")])
def test_what_a_change_made_goes_with_it_and_nothing_else(
    small: SmallVolume,
    command: Command,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: Sequence[str],
) -> None:
    run(small, command, "add")
    fail_to_save(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run(small, command, *words)
    assert elsewhere.files() == ["made.1"]
    assert "left behind" not in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["the server is away", "others may use it"])
def test_what_cannot_be_removed_is_named_with_the_command_that_does(
    small: SmallVolume,
    command: Command,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str,
) -> None:
    elsewhere.broken = reason == "the server is away"
    elsewhere.kept = "" if elsewhere.broken else reason
    fail_to_save(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        run(small, command, "add")
    assert elsewhere.files() == ["made.1"]
    assert capsys.readouterr().err == (
        "tdefs: warning: the thing 1, which this command has made, is left behind\n"
        f"DETAIL:  {reason}\n"
        "HINT:  to remove it: rm made.1\n"
    )


def test_what_the_keystore_on_the_disk_needs_stays_though_saving_ended_in_an_error(
    small: SmallVolume, command: Command, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last fsync, of the directory, comes after the new keystore has taken its place."""

    rename = OwnDirectory.rename

    def failing_afterwards(directory: OwnDirectory, name: str, new: str) -> None:
        rename(directory, name, new)
        monkeypatch.setattr("tdefs.private.sync_directory", failing)

    def failing(_: int) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(OwnDirectory, "rename", failing_afterwards)
    with pytest.raises(OSError, match="Input/output error"):
        run(small, command, "add")
    assert load_keystore(small.volume.keystore).unlock(elsewhere)
    assert elsewhere.files() == ["made.1"]


def test_what_an_unreadable_keystore_may_need_stays_and_is_told(
    small: SmallVolume,
    command: Command,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(*_: object) -> None:
        small.volume.keystore.write_bytes(b"torn")
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(transaction, "_write", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run(small, command, "add")
    assert elsewhere.files() == ["made.1"]
    assert "the keystore cannot be read, and may need it" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["tdefs.private.OwnDirectory.write_durably", "tdefs.cli.init.save_volume"])
def test_failed_init_leaves_nothing_that_its_protector_made(
    tmp_path: Path, command: Command, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(place, failing)
    with pytest.raises((OSError, TdefsError)):
        command.run(init, tmp_path / "backing", "--keystore", tmp_path / "keystore")
    assert elsewhere.files() == []
    assert not (tmp_path / "keystore").exists()


def test_host_key_of_a_change_that_was_not_saved_is_removed(
    small: SmallVolume, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host_keys = tmp_path / "host-keys"
    config = tmp_path / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {small.volume.backing}:\n    host_key_directory: {host_keys}\n")
    id_file = tmp_path / "machine-id"
    id_file.write_text(f"{'5' * 32}\n")
    real = this_host.machine_id
    monkeypatch.setattr("tdefs.keys.protectors.this_host.machine_id", lambda _: real(id_file))

    def enable() -> None:
        words = ("--host-key", "--config", config, *UNLOCK, "--volume", small.volume.backing)
        command.run(auto_open, "enable", *words)

    enable()
    kept = list(host_keys.iterdir())
    assert len(kept) == 1
    fail_to_save(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        enable()
    assert list(host_keys.iterdir()) == kept
    entry = load_keystore(small.volume.keystore).document.protectors[-1]
    assert entry.kind == ThisHostProtector.kind


def test_host_key_that_cannot_be_given_to_its_user_is_not_left_behind(
    small: SmallVolume, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("root alone gives files away")
    host_keys = tmp_path / "host-keys"
    host_keys.mkdir(0o700)
    os.chown(host_keys, 65534, 65534)
    config = tmp_path / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {small.volume.backing}:\n    host_key_directory: {host_keys}\n")

    def failing(*_: object) -> None:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr("os.fchown", failing)
    with pytest.raises(TdefsError, match="could not make the host key"):
        command.run(
            auto_open, "enable", "--host-key", "--config", config, *UNLOCK, "--volume", small.volume.backing
        )
    assert list(host_keys.iterdir()) == []

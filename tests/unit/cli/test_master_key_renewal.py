"""A new master key makes the old protector keys worthless that need no person, and names the others.

Covers tdefs/cli/protector/renewal.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdefs.cli import auto_open
from tdefs.cli.key import command as key
from tdefs.cli.protector import command as protector
from tdefs.errors import TdefsError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.entries import Document, ProtectorEntry
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.wrapped_keys import kept_protector_key, master_key_by_protector_key
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)
CHEAP = ("--scrypt-cost", "14")


class Site:
    """A volume with one protector of each kind that a host without a TPM or a key server can have."""

    def __init__(self, small: SmallVolume, command: Command, root: Path) -> None:
        self.keystore = small.volume.keystore
        self.host_keys = root / "host-keys"
        self.host_keys.mkdir(mode=0o700)
        self.passphrase = self._secret(root / "passphrase", "correct horse battery\n")
        self._place = ("--volume", small.volume.backing)
        self._command = command
        self.config = root / "tdefs.yaml"
        self.configure("")
        words = ("--config", self.config)
        command.run(protector, "add", *UNLOCK, *self._place, "--new-passphrase-file", self.passphrase, *CHEAP)
        command.run(protector, "add", *UNLOCK, *self._place, "--recovery-code", "--label", "in the safe")
        command.run(protector, "add", *UNLOCK, *self._place, "--new-key-command", "printf %%064d 8")
        command.run(auto_open, "enable", "--host-key", *UNLOCK, *self._place, *words)
        self._backing = small.volume.backing

    def configure(self, line: str) -> None:
        backing = self._place[1]
        text = f"version: 1\nvolumes:\n  {backing}:\n    host_key_directory: {self.host_keys}\n{line}"
        self.config.write_text(text)

    def _secret(self, path: Path, text: str) -> Path:
        path.write_text(text)
        path.chmod(0o600)
        return path

    @property
    def document(self) -> Document:
        return load_keystore(self.keystore).document

    def stolen(self) -> dict[str, bytes]:
        """All protector keys, which a thief of the keystore with one secret of it has."""
        opened = load_keystore(self.keystore).open(CommandProtector(KEY_COMMAND))
        document = opened.document
        return {one.id: kept_protector_key(document.volume_id, one, opened.master) for one in document.protectors}

    def rotate(self, *words: str | Path) -> str:
        return self._command.run(key, "rotate-master", *words, *self._place, "--config", self.config)[1]

    def opened_by(self, stolen: dict[str, bytes]) -> set[str]:
        """The protectors by whose old keys the thief opens the keystore as it is now."""
        document = self.document
        return {one.id for one in document.protectors if _opens(document, one, stolen[one.id])}


def _opens(document: Document, entry: ProtectorEntry, stolen: bytes) -> bool:
    try:
        return isinstance(master_key_by_protector_key(document.volume_id, entry, stolen), MasterKey)
    except TdefsError:
        return False


@pytest.fixture
def site(small: SmallVolume, command: Command, tmp_path: Path) -> Site:
    return Site(small, command, tmp_path)


def test_what_needs_no_person_is_renewed_and_the_rest_is_named(site: Site) -> None:
    stolen = site.stolen()
    assert site.opened_by(stolen) == {"pr_1", "pr_2", "pr_3", "pr_4", "pr_5"}
    (old_host_key,) = site.host_keys.iterdir()
    said = site.rotate(*UNLOCK)
    assert site.opened_by(stolen) == {"pr_2", "pr_3", "pr_4"}
    assert "protector pr_1 (command) has a new key" in said
    assert re.search(r"protector pr_5 \(this-host, [^)]*\) has a new key", said)
    assert "protector pr_2 (passphrase) keeps its old key: its secret is not at hand" in said
    assert "protector pr_3 (recovery-code, in the safe) keeps its old key" in said
    for id in ("pr_2", "pr_3", "pr_4"):
        assert f"tdefs protector change {id}" in said
    # the new host key is in the place of the old one
    (new_host_key,) = site.host_keys.iterdir()
    assert new_host_key != old_host_key


def test_every_protector_opens_the_new_master_key_whether_renewed_or_not(site: Site) -> None:
    labels = [(one.id, one.kind, one.label) for one in site.document.protectors]
    site.rotate(*UNLOCK)
    site.rotate("--auto-open")
    assert [(one.id, one.kind, one.label) for one in site.document.protectors] == labels
    for secret in (
        CommandProtector(KEY_COMMAND),
        CommandProtector("printf %%064d 8"),
        PassphraseProtector(lambda: b"correct horse battery"),
    ):
        assert load_keystore(site.keystore).open(secret).master.name == "mk_3"


@pytest.mark.parametrize(
    ("line", "id"),
    [("    passphrase_file: {passphrase}\n", "pr_2"), ("    key_command: printf %%064d 8\n", "pr_4")],
)
def test_what_the_configuration_names_is_renewed(site: Site, line: str, id: str) -> None:
    site.configure(line.format(passphrase=site.passphrase))
    stolen = site.stolen()
    site.rotate(*UNLOCK)
    assert id not in site.opened_by(stolen)
    # at the cost that it had
    assert {one.params["n"] for one in site.document.protectors if one.kind == "passphrase"} == {1 << 14}


def test_a_secret_that_cannot_be_had_leaves_its_protector_as_it_was(site: Site) -> None:
    site.configure("    passphrase_file: /nowhere/at-all\n")
    stolen = site.stolen()
    said = site.rotate(*UNLOCK)
    assert "pr_2" in site.opened_by(stolen)
    assert "protector pr_2 (passphrase) keeps its old key: could not read the passphrase file" in said


def test_a_rotation_that_cannot_be_saved_leaves_the_old_host_key_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set(site.host_keys.iterdir())
    before = site.keystore.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tdefs.keys.keystore.transaction._write", full)
    with pytest.raises(OSError, match="No space"):
        site.rotate(*UNLOCK)
    assert site.keystore.read_bytes() == before
    assert set(site.host_keys.iterdir()) == keys

"""Auto-open: a keystore opens without a person on the machine where that was enabled, and on no other.

Covers tdefs/cli/auto_open.py, tdefs/cli/common/this_host.py, tdefs/keys/tpm.py and the protector this-host.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.keysources.machines import Machine
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

PASSPHRASE = "correct horse battery"


@dataclass(frozen=True)
class Site:
    """A machine and a keystore of a volume that everybody shares; its protector pr_2 is of the first machine."""

    machine: Machine
    volume: Volume
    keystore: Path

    def tdefs(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command of tdefs on the machine."""
        done = self.machine.run(TDEFS, *words, *self.place, check=False)
        assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}exit code {done.returncode}"
        return done

    @property
    def place(self) -> list[str]:
        places = ["--volume", str(self.volume.backing), "--keystore", str(self.keystore)]
        return [*places, "--config", str(self.machine.config)]

    def opens(self) -> bool:
        """Whether the keystore opens without a secret, and nothing is said against it."""
        done = self.machine.run(TDEFS, "key", "verify", *self.place, check=False)
        assert done.returncode in (0, 25)
        return done.returncode == 0 and not done.stderr

    def status(self) -> Any:
        return json.loads(self.tdefs("auto-open", "status", "--json").stdout)

    def protectors(self) -> dict[str, str]:
        """The label of each protector."""
        listed = json.loads(self.tdefs("protector", "list", "--json").stdout)
        return {one["id"]: one["label"] for one in listed}

    def at(self, machine: Machine) -> Site:
        """A copy of the keystore on another machine."""
        copy = machine.root / "keystore"
        shutil.copy(self.keystore, copy)
        shutil.copy(f"{self.keystore}.history", f"{copy}.history")
        return replace(self, machine=machine, keystore=copy)


@pytest.fixture(scope="module")
def machines(workspace: Workspace) -> Iterator[Callable[[Machine], Machine]]:
    """Takes note of machines, whose TPMs are ended after the last test."""
    noted: list[Machine] = []

    def note(machine: Machine) -> Machine:
        noted.append(machine)
        return machine

    yield note
    for machine in noted:
        machine.close()


@pytest.fixture(scope="module")
def volume(workspace: Workspace) -> Volume:
    """A volume, whose first protector pr_1 is a key command."""
    volume = Volume(workspace.directory("this-host") / "volume")
    volume.init()
    return volume


def first_site(workspace: Workspace, volume: Volume, machine: Machine, label: str) -> Site:
    site = Site(machine, volume, volume.keystore).at(machine)
    site.tdefs("auto-open", "enable", "--label", label, *volume.unlock)
    return site


@pytest.fixture(scope="module")
def enabled_tpm(workspace: Workspace, volume: Volume, machines: Callable[[Machine], Machine]) -> Site:
    machine = machines(Machine.new(workspace.directory("with-tpm") / "machine", tpm=True))
    return first_site(workspace, volume, machine, "server A")


@pytest.fixture(scope="module")
def enabled_host_key(workspace: Workspace, volume: Volume, machines: Callable[[Machine], Machine]) -> Site:
    machine = machines(Machine.new(workspace.directory("without-tpm") / "machine", tpm=False))
    return first_site(workspace, volume, machine, "server A")


@pytest.fixture
def new_root(workspace: Workspace) -> Callable[[], Path]:
    return lambda: workspace.directory("machine") / "machine"


@pytest.fixture
def by_tpm(enabled_tpm: Site, new_root: Callable[[], Path], machines: Callable[[Machine], Machine]) -> Site:
    """The machine with a TPM, on which auto-open is enabled, as if nobody else had used it."""
    return enabled_tpm.at(machines(enabled_tpm.machine.reborn(new_root())))


@pytest.fixture
def by_host_key(enabled_host_key: Site, new_root: Callable[[], Path]) -> Site:
    """The machine without a TPM, on which auto-open is enabled, as if nobody else had used it."""
    return enabled_host_key.at(enabled_host_key.machine.reborn(new_root()))


@pytest.fixture(params=["tpm", "host-key"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each of the two."""
    found: Site = request.getfixturevalue("by_tpm" if request.param == "tpm" else "by_host_key")
    return found


@pytest.fixture
def other_machine(new_root: Callable[[], Path]) -> Machine:
    """A machine without a TPM."""
    return Machine.new(new_root(), tpm=False)


def test_the_host_mounts_without_a_person(site: Site) -> None:
    volume = site.volume
    mount = ["mount", volume.backing, volume.mountpoint, "--keystore", site.keystore, "--log-file", volume.log]
    mount += ["--config", site.machine.config]
    words = [shlex.join(map(str, [TDEFS, *mount]))]
    words += [f"echo hello > {volume.mountpoint}/file", f"cat {volume.mountpoint}/file"]
    words += [f"{TDEFS} umount {volume.mountpoint}"]
    assert site.machine.run("sh", "-ec", "\n".join(words)).stdout == "hello\n"


def test_a_new_master_key_opens_on_the_host_too(by_host_key: Site) -> None:
    by_host_key.tdefs("key", "rotate-master")
    assert by_host_key.opens()
    history = by_host_key.tdefs("key", "history", "--json", *by_host_key.volume.unlock).stdout
    assert [one["what"].get("protector") for one in json.loads(history)["records"]][-2:] == ["pr_2", "pr_1"]


def test_status_says_by_what_the_host_opens(by_tpm: Site, by_host_key: Site) -> None:
    shown = by_tpm.tdefs("auto-open", "status").stdout
    assert re.search(r"pr_2 +server A +the TPM +opens", shown)
    assert "this host opens the keystore by the TPM" in shown
    mine = {"this_host": True, "opens": True, "reason": None}
    assert by_host_key.status() == {
        "opens": True,
        "protectors": [{"id": "pr_2", "label": "server A", "by": "host-key"} | mine],
    }


def test_a_copy_does_not_open_on_another_machine_until_that_is_enabled_itself(
    by_host_key: Site, other_machine: Machine
) -> None:
    copy = by_host_key.at(other_machine)
    assert not copy.opens()
    refused = copy.tdefs("key", "verify", "--auto-open", code=25).stderr
    assert "auto-open is not enabled on this host" in refused
    assert "pr_2 (server A)" in refused

    copy.tdefs("auto-open", "enable", "--label", "server B", *copy.volume.unlock)
    assert copy.opens()
    assert copy.at(by_host_key.machine).opens()
    copy.tdefs("auto-open", "disable")
    assert copy.protectors() == {"pr_1": "", "pr_2": "server A"}


def test_what_was_never_enabled_cannot_be_disabled(by_host_key: Site, other_machine: Machine) -> None:
    copy = by_host_key.at(other_machine)
    assert copy.status()["protectors"][0]["this_host"] is False
    copy.tdefs("auto-open", "disable", *copy.volume.unlock, code=25)


def test_two_tpms_are_two_machines(
    by_tpm: Site, new_root: Callable[[], Path], machines: Callable[[Machine], Machine]
) -> None:
    other = by_tpm.at(machines(Machine.new(new_root(), tpm=True)))
    assert not other.opens()
    assert "is not enabled on this host" in other.tdefs("key", "verify", "--auto-open", code=25).stderr
    other.tdefs("auto-open", "enable", *other.volume.unlock)
    assert [one["opens"] for one in other.status()["protectors"]] == [False, True]


def test_all_of_the_disk_is_worth_nothing_without_the_tpm(
    by_tpm: Site, new_root: Callable[[], Path], machines: Callable[[Machine], Machine]
) -> None:
    clone = by_tpm.at(machines(by_tpm.machine.copy(new_root())))
    gone = clone.tdefs("key", "verify", "--auto-open", code=70).stderr
    assert "this host has no TPM" in gone
    clone.machine.start_tpm()
    assert "is not the one that auto-open was enabled with" in clone.tdefs("key", "verify", code=25).stderr
    assert clone.status()["protectors"][0]["opens"] is False


def test_a_host_key_is_worth_what_the_documentation_says(by_host_key: Site, other_machine: Machine) -> None:
    stolen = by_host_key.at(other_machine)
    shutil.copytree(by_host_key.machine.lib, other_machine.lib, dirs_exist_ok=True)
    refused = stolen.tdefs("key", "verify", "--auto-open", code=74).stderr
    assert "was made on another machine" in refused
    # with the machine's id, that is the whole system disk
    shutil.copy(by_host_key.machine.id_file, other_machine.id_file)
    assert stolen.opens()


def test_the_tpm_opens_after_the_machine_was_switched_off(by_tpm: Site) -> None:
    by_tpm.machine.stop_tpm()
    by_tpm.machine.start_tpm()
    assert by_tpm.opens()


def test_a_cleared_tpm_is_told_and_auto_open_can_be_enabled_again(by_tpm: Site) -> None:
    by_tpm.machine.tpm_tool("tpm2_clear", "-Q")
    refused = by_tpm.tdefs("auto-open", "status", code=74)
    assert re.search(r"pr_2 +server A +the TPM +does not open", refused.stdout)
    assert "it was cleared or replaced" in refused.stderr
    by_tpm.tdefs("auto-open", "enable", "--label", "server A again", *by_tpm.volume.unlock)
    assert by_tpm.opens()
    assert list(by_tpm.protectors().values()) == ["", "server A again"]


def test_a_tpm_that_is_gone_is_told_before_a_person_is_asked(by_tpm: Site) -> None:
    (by_tpm.machine.root / "passphrase").write_text(PASSPHRASE)
    (by_tpm.machine.root / "passphrase").chmod(0o600)
    new = ("--new-passphrase-file", by_tpm.machine.root / "passphrase", "--scrypt-cost", "14")
    by_tpm.tdefs("protector", "add", *new)
    by_tpm.machine.stop_tpm()
    assert "the TPM cannot be reached" in by_tpm.tdefs("key", "verify", "--auto-open", code=70).stderr
    command = by_tpm.machine.enter(TDEFS, "key", "verify", *by_tpm.place)
    with Terminal(command) as terminal:
        terminal.expect("warning: auto-open: the TPM cannot be reached")
        terminal.expect("Passphrase: ")
        terminal.press(f"{PASSPHRASE}\n")
        terminal.expect("opens mk_1 with the secret given")
        terminal.expect("not all of the keystore can be unwrapped now")
        assert terminal.end() == (70, True)
    by_tpm.machine.start_tpm()
    with Terminal([*command, "--ask-passphrase"]) as terminal:
        terminal.expect("Passphrase: ")
        assert "auto-open" not in terminal.shown


def test_a_tpm_that_measured_another_start_does_not_open(by_tpm: Site) -> None:
    enabled = by_tpm.tdefs("auto-open", "enable", "--pcrs", "7,11")
    assert "by the TPM now" in enabled.stdout
    assert "stolen machine that boots by itself" in enabled.stdout
    assert by_tpm.opens()
    by_tpm.machine.tpm_tool("tpm2_pcrextend", f"11:sha256={1:064x}")
    refused = by_tpm.tdefs("key", "verify", "--auto-open", code=73).stderr
    assert "the state of the machine is not the one the key is bound to" in refused


def test_a_host_with_a_tpm_can_be_bound_to_a_host_key_and_is_told_its_worth(by_tpm: Site) -> None:
    said = by_tpm.tdefs("auto-open", "enable", "--host-key").stdout
    assert "by a host key now" in said
    assert "Leave /var/lib/tdefs/host-keys out of backups" in said


def test_a_host_without_a_tpm_cannot_be_bound_to_one(by_host_key: Site) -> None:
    refused = by_host_key.tdefs("auto-open", "enable", "--pcrs=7", *by_host_key.volume.unlock, code=70)
    assert "this host has no TPM" in refused.stderr
    by_host_key.tdefs("auto-open", "enable", "--host-key", "--pcrs=7", code=2)
    assert by_host_key.opens()


@pytest.mark.parametrize("words", [("remove", "pr_2"), ("change", "pr_2", "--new-key-command", "printf %%064d 9")])
def test_removed_or_changed_it_leaves_no_host_key(by_host_key: Site, words: tuple[str, ...]) -> None:
    assert list(by_host_key.machine.host_keys.iterdir())
    by_host_key.tdefs("protector", *words)
    assert not list(by_host_key.machine.host_keys.iterdir())


def test_disabled_it_leaves_no_host_key_but_never_the_keystore_shut(by_host_key: Site) -> None:
    (key,) = by_host_key.machine.host_keys.iterdir()
    by_host_key.tdefs("protector", "remove", "pr_1")
    by_host_key.tdefs("auto-open", "disable", code=65)
    assert key.exists()
    by_host_key.tdefs("protector", "add", "--new-key-command", by_host_key.volume.unlock[1])
    by_host_key.tdefs("auto-open", "disable")
    assert not key.exists()


def test_disabling_a_tpm_says_that_old_copies_still_open(by_tpm: Site) -> None:
    old = by_tpm.keystore.read_bytes()
    said = by_tpm.tdefs("auto-open", "disable").stdout
    assert "left: pr_1 (command)" in said
    assert "copies of the keystore made before still open on this host" in said
    assert not by_tpm.opens()
    by_tpm.keystore.write_bytes(old)
    assert by_tpm.opens()


def test_a_host_key_that_others_can_read_is_refused(by_host_key: Site) -> None:
    (key,) = by_host_key.machine.host_keys.iterdir()
    key.chmod(0o640)
    refused = by_host_key.tdefs("key", "verify", "--auto-open", code=23).stderr
    assert re.search(r"is accessible to other users[\s\S]*chmod 600 /var/lib/tdefs/host-keys/", refused)
    history = by_host_key.tdefs("key", "history", "--unchecked", "--json").stdout
    assert json.loads(history)["records"][-1]["what"] == {"command": "key verify", "error": "KEYSTORE_EXPOSED"}


def test_a_machine_without_an_id_has_no_host_key(by_host_key: Site) -> None:
    by_host_key.machine.id_file.write_text("uninitialized\n")
    refused = by_host_key.tdefs("auto-open", "enable", *by_host_key.volume.unlock, code=70).stderr
    assert "systemd-machine-id-setup" in refused
    assert not by_host_key.opens()


def test_a_daemon_of_another_user_has_host_keys_of_its_own(workspace: Workspace, other_machine: Machine) -> None:
    account = workspace.account
    volume = Volume(workspace.directory("of-postgres") / "volume")
    for path in (volume.root, volume.backing, volume.key_file):
        account.own(path)
    volume.program = account.command(TDEFS)
    volume.init()
    host_keys, config = volume.root / "host-keys", workspace.directory("of-root") / "tdefs.yaml"
    # root believes nothing that the daemon's user could change
    secret = config.with_name("key")
    secret.touch(0o600)
    secret.write_text(volume.key_file.read_text())
    unlock = ["--key-command", f"cat {secret}"]
    host_keys.mkdir(mode=0o700)
    account.own(host_keys)
    config.write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    host_key_directory: {host_keys}\n")
    place = ["--volume", str(volume.backing), "--config", str(config)]

    # by root, for the daemon
    other_machine.run(TDEFS, "auto-open", "enable", *place, *unlock)
    other_machine.run(*account.command(TDEFS, "key", "verify", "--auto-open", *place))
    elsewhere = account.command(TDEFS, "auto-open", "enable", "--volume", volume.backing, *volume.unlock)
    refused = other_machine.run(*elsewhere, check=False)
    assert refused.returncode == 50
    assert "host_key_directory" in refused.stderr

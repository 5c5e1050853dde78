"""Who listens between processor and TPM learns no key; and what the TPM asks of the machine by default.

Covers tdefs/keys/tpm.py, tdefs/keys/protectors/this_host.py and tdefs/cli/auto_open.py.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.keys.protectors.this_host import secure_boot_is_on
from tdefs.keys.tpm import Tpm
from tests.keysources.machines import Machine
from tests.keysources.tpm_listener import TpmListener
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

#: TPM2_CC_StartAuthSession with a salt, TPM2_CC_Create, TPM2_CC_Unseal: what a listener must have heard.
COMMANDS = {"seal": bytes.fromhex("00000153"), "unseal": bytes.fromhex("0000015e")}


@pytest.fixture(scope="module")
def machine(workspace: Workspace) -> Iterator[Machine]:
    machine = Machine.new(workspace.directory("tpm-traffic") / "machine", tpm=True)
    yield machine
    machine.close()


@pytest.mark.parametrize("pcrs", ["", "7"])
def test_no_key_is_on_the_wires_in_the_clear(machine: Machine, tmp_path: Path, pcrs: str) -> None:
    secret = os.urandom(32)
    with TpmListener(machine.root / "tpm.sock", tmp_path / "s") as listener:
        tpm = Tpm(listener.tcti)
        sealed = tpm.seal(secret, pcrs)
        assert COMMANDS["seal"] in listener.heard
        assert secret not in listener.heard
        listener.heard.clear()
        assert Tpm(listener.tcti).unseal(sealed) == secret
        assert COMMANDS["unseal"] in listener.heard
        assert secret not in listener.heard
        # neither any half of it
        assert secret[:16] not in listener.heard
        assert secret[16:] not in listener.heard


def test_sessions_do_not_pile_up_in_the_tpm(machine: Machine) -> None:
    """A TPM has room for some 64, and three that are loaded."""
    tpm = Tpm(f"swtpm:path={machine.root / 'tpm.sock'}")
    sealed = tpm.seal(bytes(32), "7")
    for _ in range(3):
        tpm.unseal(sealed)
    for kind in ("handles-loaded-session", "handles-saved-session", "handles-transient"):
        assert machine.run("tpm2_getcap", kind).stdout == ""


@pytest.mark.parametrize(
    ("content", "on"),
    [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"\x06\0\0\0", False), (b"", False), (None, False)],
)
def test_secure_boot_is_what_the_firmware_says(tmp_path: Path, content: bytes | None, on: bool) -> None:
    variable = tmp_path / "SecureBoot"
    if content is not None:
        variable.write_bytes(content)
    assert secure_boot_is_on(variable) is on


@pytest.mark.parametrize(
    ("firmware", "words", "pcrs"),
    [
        (r"\006\0\0\0\001", (), "7"),
        (r"\006\0\0\0\000", (), ""),
        (None, (), ""),
        (r"\006\0\0\0\001", ("--pcrs", "none"), ""),
        (r"\006\0\0\0\001", ("--pcrs", ""), ""),
        (r"\006\0\0\0\001", ("--pcrs", "0,4"), "0,4"),
        (None, ("--pcrs", "7"), "7"),
    ],
)
def test_state_of_secure_boot_is_asked_for_where_it_is_on(
    workspace: Workspace, machine: Machine, firmware: str | None, words: tuple[str, ...], pcrs: str
) -> None:
    volume = Volume(workspace.directory("secure-boot") / "volume")
    volume.init()
    efi = "/sys/firmware/efi/efivars"
    script = ["mount -t tmpfs none /sys/firmware", f"mkdir -p {efi}"]
    if firmware is not None:
        script.append(f"printf '{firmware}' > {efi}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    place = ["--volume", volume.backing, "--config", machine.config]
    enable = [TDEFS, "auto-open", "enable", *place, *volume.unlock, *words]
    script.append(shlex.join(map(str, enable)))
    said = machine.run("sh", "-ec", "\n".join(script)).stdout
    body = volume.keystore.read_bytes().rpartition(b"sha256:")[0]
    assert json.loads(body)["protectors"][-1]["params"]["pcrs"] == pcrs
    assert ("whatever is started on this machine" in said) is (pcrs == "")
    assert (f"only while its PCRs {pcrs} are as they are now" in said) is (pcrs != "")

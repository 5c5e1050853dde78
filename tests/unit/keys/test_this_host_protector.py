"""The protector this-host, its host keys and what is said of a TPM.

Covers tdefs/keys/protectors/this_host.py, tdefs/keys/protectors/this_host*.py and the errors of tdefs/keys/tpm.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tdefs.cli.common.this_host import survey
from tdefs.errors import Exit, TdefsError
from tdefs.keys import tpm
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import Keystore
from tdefs.keys.keystore.wrapped_keys import new_document, now
from tdefs.keys.protectors.base import NotMineError
from tdefs.keys.protectors.this_host import HostRefusedError, ThisHostProtector
from tdefs.keys.protectors.this_host_holders import PCRS, HostKeyHolder, TpmHolder
from tdefs.keys.tpm import Sealed, Tpm
from tdefs.keys.wrapping import WrapContext
from tests.unit.keys.keystore_samples import VOLUME_ID, everything_shown, passphrase

CONTEXT = WrapContext(VOLUME_ID, "protector key by this-host", "pr_2", 0, "pr_2")
SECRET = bytes(range(32))
MACHINE, OTHER_MACHINE = "00112233445566778899aabbccddeeff", "ff" * 16


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The file with the machine's id."""
    path = tmp_path / "machine-id"
    path.write_text(f"{MACHINE}\n")
    return path


@pytest.fixture
def host_keys(tmp_path: Path) -> Path:
    return tmp_path / "tdefs" / "host-keys"


@pytest.fixture
def protector(machine: Path, host_keys: Path) -> Callable[[], ThisHostProtector]:
    """Makes this host's protector, which remembers nothing of what another has fetched."""

    def make() -> ThisHostProtector:
        holder = HostKeyHolder(host_keys)
        # an address where nobody answers
        absent = TpmHolder(Tpm(f"swtpm:path={host_keys}/none"))
        return ThisHostProtector([absent, holder], keeper=holder, machine_id_file=machine)

    return make


@pytest.fixture
def entry(protector: Callable[[], ThisHostProtector]) -> ProtectorEntry:
    wrapped = protector().wrap(SECRET, CONTEXT)
    return ProtectorEntry("pr_2", "this-host", now(), "mk_1", wrapped.params, wrapped.wrapped)


def hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(secret)


def test_a_host_key_wraps_as_the_format_says(host_keys: Path, entry: ProtectorEntry) -> None:
    key = bytes.fromhex((host_keys / f"{entry.params['host_key']}.key").read_text())
    machine = bytes.fromhex(MACHINE)
    secret = hkdf(key, b"tdefs v1 host key on machine" + machine)
    wrapping_key = hkdf(secret, b"tdefs v1 this-host wrapping key" + CONTEXT.to_bytes())
    nonce, sealed = entry.wrapped[:12], entry.wrapped[12:]
    assert AESGCM(wrapping_key).decrypt(nonce, sealed, CONTEXT.to_bytes()) == SECRET
    name = HKDF(SHA256(), 16, None, b"tdefs v1 machine name").derive(machine)
    assert entry.params == {"by": "host-key", "machine": name.hex(), "host_key": entry.params["host_key"]}


def test_host_keys_are_private_and_each_is_new(
    protector: Callable[[], ThisHostProtector], host_keys: Path, entry: ProtectorEntry
) -> None:
    before = {path: path.read_bytes() for path in host_keys.iterdir()}
    protector().wrap(SECRET, CONTEXT)
    after = {path: path.read_bytes() for path in host_keys.iterdir()}
    assert len(before) == 1
    assert len(after) == 2
    assert len(set(after.values())) == 2
    assert before.items() <= after.items()
    assert {path.stat().st_mode & 0o777 for path in after} == {0o600}
    assert host_keys.stat().st_mode & 0o777 == 0o700


def test_the_same_host_unwraps_in_the_same_place_only(
    protector: Callable[[], ThisHostProtector], entry: ProtectorEntry
) -> None:
    assert protector().unwrap(entry, CONTEXT) == SECRET
    with pytest.raises(HostRefusedError):
        protector().unwrap(entry, replace(CONTEXT, volume_id=bytes(16)))
    with pytest.raises(NotMineError):
        protector().unwrap(replace(entry, kind="passphrase"), CONTEXT)


def test_an_entry_of_another_host_is_not_mine(
    protector: Callable[[], ThisHostProtector], machine: Path, host_keys: Path, entry: ProtectorEntry
) -> None:
    (key,) = host_keys.iterdir()
    key.unlink()
    machine.write_text(OTHER_MACHINE)
    with pytest.raises(NotMineError):
        protector().unwrap(entry, CONTEXT)
    machine.unlink()
    with pytest.raises(NotMineError):
        protector().unwrap(entry, CONTEXT)


def to_pipe(key: Path) -> None:
    key.unlink()
    os.mkfifo(key, 0o600)


def to_link(key: Path) -> None:
    key.replace(key.with_name("real"))
    key.symlink_to("real")


@pytest.mark.parametrize(
    ("spoil", "exit_code", "reason"),
    [
        (lambda key: key.chmod(0o604), Exit.KEYSTORE_EXPOSED, "accessible to other users"),
        (lambda key: key.parent.chmod(0o710), Exit.KEYSTORE_EXPOSED, "accessible to other users"),
        (lambda key: key.write_text("0\n"), Exit.WRAPPING_KEY_UNUSABLE, "is damaged"),
        (to_pipe, Exit.FILE_UNTRUSTED, "it is a FIFO"),
        (to_link, Exit.FILE_UNTRUSTED, "it is a symbolic link"),
        (lambda key: key.write_text(f"{1:064x}\n"), Exit.WRAPPING_KEY_UNUSABLE, "not the one of this keystore"),
        (lambda key: key.unlink(), Exit.WRAPPING_KEY_UNUSABLE, "is not there any more"),
    ],
)
def test_a_host_key_that_is_not_as_it_was_is_refused(
    protector: Callable[[], ThisHostProtector],
    host_keys: Path,
    entry: ProtectorEntry,
    spoil: Callable[[Path], None],
    exit_code: Exit,
    reason: str,
) -> None:
    (key,) = host_keys.iterdir()
    secret = key.read_text().strip()
    spoil(key)
    with pytest.raises(HostRefusedError, match=reason) as caught:
        protector().unwrap(entry, CONTEXT)
    assert caught.value.exit_code is exit_code
    assert secret not in everything_shown(caught.value)


def test_a_copied_host_key_is_bound_to_the_machine(
    protector: Callable[[], ThisHostProtector], machine: Path, entry: ProtectorEntry
) -> None:
    machine.write_text(OTHER_MACHINE)
    with pytest.raises(HostRefusedError, match="was made on another machine"):
        protector().unwrap(entry, CONTEXT)
    # by its key, too, and not only by its name
    forged = replace(entry, params={**entry.params, "machine": hkdf_name(OTHER_MACHINE)})
    with pytest.raises(HostRefusedError, match="not the one of this keystore"):
        protector().unwrap(forged, CONTEXT)


def hkdf_name(machine: str) -> str:
    return HKDF(SHA256(), 16, None, b"tdefs v1 machine name").derive(bytes.fromhex(machine)).hex()


@pytest.mark.parametrize(
    "change",
    [
        {"by": "magic"},
        {"by": 1},
        {"machine": "00"},
        {"host_key": "../../etc/shadow"},
        {"extra": "x"},
        {"by": "tpm"},
        {"by": "tpm", "host_key": None, "tpm": "00" * 34, "public": "AAAA", "private": "A===", "pcrs": ""},
        {"by": "tpm", "host_key": None, "tpm": "00" * 34, "public": "AAAA", "private": "AAAA", "pcrs": "24"},
        {"by": "tpm", "host_key": None, "tpm": "00" * 33, "public": "AAAA", "private": "AAAA", "pcrs": ""},
    ],
)
def test_parameters_that_are_never_written_are_damage(
    protector: Callable[[], ThisHostProtector], entry: ProtectorEntry, change: dict[str, str | int | None]
) -> None:
    params = {name: value for name, value in {**entry.params, **change}.items() if value is not None}
    with pytest.raises(TdefsError) as caught:
        protector().unwrap(replace(entry, params=params), CONTEXT)
    assert caught.value.exit_code is Exit.KEYSTORE_DAMAGED


def test_what_a_newer_version_made_is_not_taken_for_this_hosts(
    protector: Callable[[], ThisHostProtector], entry: ProtectorEntry
) -> None:
    newer = replace(entry, params={**entry.params, "by": "enclave"})
    document = new_document(VOLUME_ID, passphrase(), ["dk_1"])
    document = replace(document, protectors=(*document.protectors, newer))
    (found,) = survey(document, protector())
    assert (found.entry, found.title, found.is_mine, found.opens) == (newer, "something unknown", False, False)
    assert found.refusal is not None


def test_a_tpm_of_this_machine_that_is_silent_is_refused_and_that_of_another_not_mine(
    protector: Callable[[], ThisHostProtector], machine: Path, entry: ProtectorEntry
) -> None:
    params = {"by": "tpm", "machine": entry.params["machine"], "tpm": "00" * 34, "pcrs": ""}
    of_tpm = replace(entry, params={**params, "public": "AAAA", "private": "AAAA"})
    with pytest.raises(HostRefusedError, match="the TPM cannot be reached") as caught:
        protector().unwrap(of_tpm, CONTEXT)
    assert caught.value.exit_code is Exit.KEY_SOURCE_UNAVAILABLE
    machine.write_text(OTHER_MACHINE)
    with pytest.raises(NotMineError):
        protector().unwrap(of_tpm, CONTEXT)


def test_a_machine_without_an_id_gets_no_protector(
    protector: Callable[[], ThisHostProtector], machine: Path, host_keys: Path
) -> None:
    for text in ("", "uninitialized\n", f"{MACHINE}00\n"):
        machine.write_text(text)
        with pytest.raises(TdefsError, match="has no id") as caught:
            protector().wrap(SECRET, CONTEXT)
        assert caught.value.exit_code is Exit.KEY_SOURCE_UNAVAILABLE
    assert not host_keys.exists()


def test_missing_tpm_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tpm, "_SAFE_PATH", str(tmp_path))
    with pytest.raises(TdefsError, match="tpm2_createprimary of tpm2-tools cannot be run") as caught:
        Tpm("swtpm:path=/nonexistent").seal(SECRET)
    assert caught.value.exit_code is Exit.KEY_SOURCE_UNAVAILABLE
    assert SECRET.hex() not in everything_shown(caught.value)


@pytest.mark.parametrize(
    ("script", "exit_code", "reason"),
    [
        ("echo 'ERROR: Esys_CreatePrimary(0x9A2) - x' >&2; exit 1", Exit.KEY_SERVER_REFUSED, "wants a password"),
        ("echo 'ERROR: Esys_Create(0x2C4) - x' >&2; exit 1", Exit.KEY_SERVER_REFUSED, "the TPM refused"),
        ("echo 'ERROR: tcti: no device' >&2; exit 1", Exit.KEY_SOURCE_UNAVAILABLE, "cannot be reached"),
        ("exec sleep 60", Exit.KEY_SOURCE_UNAVAILABLE, "did not answer within 0.2 seconds"),
    ],
)
def test_what_the_tools_say_is_told_by_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, exit_code: Exit, reason: str
) -> None:
    (tmp_path / "tpm2_createprimary").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "tpm2_createprimary").chmod(0o755)
    monkeypatch.setattr(tpm, "_SAFE_PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(tpm, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(TdefsError, match=reason) as caught:
        Tpm("swtpm:path=/nonexistent").unseal(Sealed(b"public", b"private"))
    assert caught.value.exit_code is exit_code


def test_pcrs_are_those_a_tpm_has() -> None:
    for text in ("0", "7", "0,7", "23", "10,19,20"):
        assert PCRS.fullmatch(text)
    for text in ("", "24", "7,", "sha256:7", "07", "7 "):
        assert not PCRS.fullmatch(text)


def test_the_tools_get_the_secret_by_a_pipe_and_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for tool in ("createprimary", "readpublic", "startauthsession", "sessionconfig", "flushcontext", "create"):
        record = f'{{ env; echo "$@"; }} >>{tmp_path}/seen; cat >>{tmp_path}/read'
        (tmp_path / f"tpm2_{tool}").write_text(f"#!/bin/sh\n{record}\n")
        (tmp_path / f"tpm2_{tool}").chmod(0o755)
    monkeypatch.setattr(tpm, "_SAFE_PATH", f"{tmp_path}:/usr/bin:/bin")
    # by which the library would print all that it sends
    monkeypatch.setenv("TSS2_LOG", "all+trace")
    secret = b"sealed secret of thirty-two byte"
    Tpm("swtpm:path=/nonexistent").seal(secret)
    seen = (tmp_path / "seen").read_text()
    assert "TPM2TOOLS_TCTI=swtpm:path=/nonexistent" in seen
    assert "TSS2_LOG" not in seen
    assert secret.decode() not in seen
    assert (tmp_path / "read").read_bytes() == secret


def test_messages_call_this_host_so(tmp_path: Path, protector: Callable[[], ThisHostProtector]) -> None:
    document = new_document(VOLUME_ID, passphrase(), ["dk_1"])
    with pytest.raises(TdefsError) as caught:
        Keystore(tmp_path, document).open(protector())
    assert caught.value.message == "this host does not open the keystore, which has no protector of kind this-host"
    document = new_document(VOLUME_ID, protector(), ["dk_1"])
    (tmp_path / "machine-id").write_text(f"{OTHER_MACHINE}\n")
    shutil.rmtree(tmp_path / "tdefs")
    with pytest.raises(TdefsError) as caught:
        Keystore(tmp_path, document).open(protector())
    assert caught.value.message == "none of the keystore's protectors of kind this-host was made by this host"

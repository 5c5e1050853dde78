"""Volumes whose keys a Vault server unlocks, through the command line as a DBA uses it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.keysources.vault.described import Described
from tests.keysources.vault.server import OpenBao
from tests.support.scan import files_with
from tests.support.volume import Volume
from tests.support.workspace import Workspace

#: What hvac and requests would take from the environment, and what would lead them astray.
MISLEADING = {
    "VAULT_ADDR": "https://127.0.0.1:9",
    "VAULT_TOKEN": "s.misleading",
    "VAULT_NAMESPACE": "elsewhere",
    "VAULT_CACERT": "/nonexistent/ca.pem",
    "VAULT_CLIENT_CERT": "/nonexistent/client.pem",
    "VAULT_CLIENT_KEY": "/nonexistent/client.key",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "",
    "REQUESTS_CA_BUNDLE": "/nonexistent/ca.pem",
    "SSL_CERT_FILE": "/nonexistent/ca.pem",
}


@pytest.fixture
def volume(scratch: Workspace) -> Volume:
    """A volume not yet made."""
    return scratch.volume()


@pytest.fixture
def ending(workspace: Workspace) -> Iterator[OpenBao]:
    """A server of its own, which a test may end."""
    server = OpenBao(workspace.directory("ending"))
    try:
        yield server
    finally:
        server.stop()


def make(volume: Volume, described: Described) -> list[str | Path]:
    """Makes the volume with the key source and returns the arguments that unlock it."""
    unlock: list[str | Path] = ["--key-source", "bao", "--config", described.write()]
    volume.tdefs("init", volume.backing, "--keystore", volume.keystore, *unlock)
    return unlock


def test_a_volume_through_its_life_with_both_kinds(volume: Volume, transit: Described, kv: Described) -> None:
    unlock = make(volume, transit)
    transit.write(beside=kv)
    other = ["--key-source", "beside", *unlock[2:]]
    place: list[str | Path] = ["--volume", volume.backing]
    volume.tdefs("protector", "add", *place, *unlock, "--new-key-source", "beside", "--label", "kept")
    volume.tdefs("protector", "change", "pr_1", *place, *other, "--new-key-source", "bao")
    volume.tdefs("key", "rotate-master", *place, *other)
    volume.tdefs("key", "verify", *place, *unlock)
    tested = volume.tdefs("protector", "test", *place, *other).stdout
    assert (tested.count(" opens"), tested.count("of another kind")) == (1, 1)
    volume.tdefs("protector", "remove", "pr_1", *place, *other)
    listed = json.loads(volume.tdefs("protector", "list", *place, "--json").stdout)
    assert [one["kind"] for one in listed] == ["vault-kv"]
    assert volume.tdefs("key", "verify", *place, *unlock, check=False).returncode == Exit.NO_SECRET


def test_the_environment_changes_nothing(
    either: Described, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = either.directory / "home"
    home.mkdir()
    (home / ".vault-token").write_text("s.misleading")
    (home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    for name, value in (MISLEADING | {"HOME": str(home)}).items():
        monkeypatch.setenv(name, value)
    either.with_role(*either.server.role(either.policy))
    volume.tdefs("key-source", "test", "bao", "--config", either.write())
    # Nor does it make up for what is missing.
    monkeypatch.setenv("VAULT_TOKEN", either.server.admin.token)
    monkeypatch.setenv("VAULT_CACERT", str(either.server.authority.certificate))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(either.server.authority.certificate))
    either.fields["ca"] = str(either.server.client.certificate)
    refused = volume.tdefs("key-source", "test", "bao", "--config", either.write(), check=False)
    assert refused.returncode == Exit.KEY_SERVER_UNTRUSTED


def test_an_outage_while_mounted_harms_nothing_and_the_next_mount_says_why(
    ending: OpenBao, volume: Volume, tmp_path: Path
) -> None:
    transit = Described(ending, tmp_path, "transit")
    ending.admin.secrets.transit.create_key(transit.name)
    unlock = make(volume, transit)
    mount = ["mount", volume.backing, volume.mountpoint, *unlock, "--log-file", volume.log]
    volume.tdefs(*mount)
    (volume.mountpoint / "before").write_bytes(b"x" * 20000)
    ending.stop()
    (volume.mountpoint / "during").write_bytes(b"y" * 20000)
    assert (volume.mountpoint / "before").read_bytes() == b"x" * 20000
    volume.umount()
    transit.fields["patience_seconds"] = 2
    transit.write()
    begin = time.monotonic()
    refused = volume.tdefs(*mount, check=False)
    assert refused.returncode == Exit.KEY_SERVER_UNREACHABLE
    assert time.monotonic() - begin < 15
    assert f"{ending.address} does not answer: connection refused; trying again for up to" in refused.stderr
    assert not volume.is_mounted


def test_no_secret_is_in_any_output_or_file_at_log_level_debug(volume: Volume, either: Described) -> None:
    role_id, secret_id = either.server.role(either.policy)
    either.with_role(role_id, secret_id)
    unlock = make(volume, either)
    either.write(log_level="debug")
    volume.tdefs("mount", volume.backing, volume.mountpoint, *unlock, "--log-file", volume.log)
    (volume.mountpoint / "file").write_bytes(b"x")
    volume.umount()
    either.with_role(role_id, "wrong-secret-id")
    either.write(log_level="debug")
    refused = volume.tdefs("verify", volume.backing, *unlock, check=False)
    assert refused.returncode == Exit.KEY_SERVER_REFUSED
    secrets = [secret_id, "wrong-secret-id", either.server.admin.token]
    if either.kind == "vault-kv":
        kept = either.server.admin.secrets.kv.v2.read_secret_version(
            str(either.fields["path"]), mount_point="kv", raise_on_deleted_version=True
        )
        secrets.append(kept["data"]["data"]["key"])
    assert " DEBUG " in volume.log.read_text()
    # Everything that the volume has on disk, and in the log what every command printed.
    assert files_with(volume.root, secrets) == {secret: set() for secret in secrets}

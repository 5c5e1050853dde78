"""A volume whose passphrase systemd hands to the unit. Covers tdefs/keys/private_files.py through the commands."""

from __future__ import annotations

from pathlib import Path

from tests.support.volume import TDEFS
from tests.support.workspace import Workspace


def test_a_unit_with_a_credential_unlocks_as_the_configuration_says(scratch: Workspace) -> None:
    volume = scratch.volume()
    credentials = volume.root / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "pg").write_text("correct horse battery\n")
    (credentials / "pg").chmod(0o400)
    config = volume.root / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    passphrase_credential: pg\n")
    outside = volume.program
    volume.program = ["env", f"CREDENTIALS_DIRECTORY={credentials}", str(TDEFS)]
    volume.tdefs("init", volume.backing, "--passphrase-credential", "pg", "--scrypt-cost", "14")
    volume.tdefs("mount", volume.backing, volume.mountpoint, "--config", config, "--log-file", volume.log)
    Path(volume.mountpoint, "file").write_text("hello")
    volume.umount()
    volume.program = ["env", "-u", "CREDENTIALS_DIRECTORY", *outside]
    refused = volume.tdefs("mount", volume.backing, volume.mountpoint, "--config", config, check=False)
    assert refused.returncode == 25
    assert "LoadCredential=pg:FILE" in refused.stderr

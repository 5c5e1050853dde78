"""A backup opens with the keystore of its time, and with today's while it has the key."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CONTENT = b"written before every rotation\n" * 1000
FILE = "pg_notes"


class Backup:
    """A cold copy of a backing directory, and the keystore as it was then; both elsewhere, as on another host."""

    def __init__(self, volume: Volume, directory: Path) -> None:
        self._volume = volume
        self.directory = directory / "backing"
        self.keystore = directory / "keystore"
        self.secret = directory / "secret"
        shutil.copytree(volume.backing, self.directory)
        shutil.copy2(volume.keystore, self.keystore)
        shutil.copy2(volume.key_file, self.secret)

    def verify(self, keystore: Path, secret: Path) -> tuple[int, str]:
        """Exit code and errors of ``tdefs verify`` with a keystore and its secret."""
        words = ("verify", self.directory, "--keystore", keystore, "--key-command", f"cat '{secret}'")
        done = self._volume.tdefs(*words, check=False)
        return done.returncode, done.stdout + done.stderr

    def mounted_content(self, keystore: Path, secret: Path) -> bytes:
        """What a mount of it shows."""
        place = self.directory.with_name("mnt")
        place.mkdir(exist_ok=True)
        words = (self.directory, place, "--keystore", keystore, "--key-command", f"cat '{secret}'")
        self._volume.tdefs("mount", *words)
        try:
            return (place / FILE).read_bytes()
        finally:
            self._volume.tdefs("umount", place)


@pytest.fixture
def backup(scratch: Workspace, volume: Volume) -> Backup:
    """A backup of a volume with one file; the volume is mounted then."""
    volume.mount()
    (volume.mountpoint / FILE).write_bytes(CONTENT)
    volume.umount()
    backup = Backup(volume, scratch.directory("backup"))
    volume.mount()
    return backup


def change(volume: Volume, *words: str | Path) -> None:
    volume.tdefs(*words, "--volume", volume.backing, *volume.unlock)


def test_backup_of_before_rotations_opens_until_the_key_is_destroyed(volume: Volume, backup: Backup) -> None:
    today = (volume.keystore, volume.key_file)
    then = (backup.keystore, backup.secret)

    change(volume, "key", "rotate-master")
    change(volume, "key", "rotate", "dk_1")
    new = volume.root / "new"
    new.write_text("feed" * 16)
    change(volume, "protector", "change", "pr_1", "--new-key-command", f"cat '{new}'")
    new.rename(volume.key_file)
    for keystore, secret in (then, today):
        assert backup.verify(keystore, secret)[0] == Exit.OK
        assert backup.mounted_content(keystore, secret) == CONTENT
    # each keystore has the secret of its time
    assert backup.verify(backup.keystore, volume.key_file)[0] == Exit.WRONG_SECRET
    assert backup.verify(volume.keystore, backup.secret)[0] == Exit.WRONG_SECRET

    content = (volume.mountpoint / FILE).read_bytes()
    (volume.mountpoint / FILE).unlink()
    (volume.mountpoint / FILE).write_bytes(content)
    change(volume, "key", "revoke", "dk_1", "--round", "1")
    assert backup.verify(*today)[0] == Exit.OK
    change(volume, "key", "destroy", "dk_1", "--round", "1")
    assert (volume.mountpoint / FILE).read_bytes() == CONTENT
    code, said = backup.verify(*today)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert "round 1 of data key dk_1 was destroyed" in said
    with pytest.raises(OSError, match="Required key not available"):
        backup.mounted_content(*today)
    assert backup.verify(*then)[0] == Exit.OK
    assert backup.mounted_content(*then) == CONTENT

"""A primary and its standbys, each on a mount of its own, as a DBA sets them up."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import Exit
from tests.support.processes import wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

#: Seconds that a standby may take to have what the primary has.
LAG = 60
#: A passphrase is derived from at each unlock; how long that takes is not what these tests are about.
CHEAP = ("--scrypt-cost", "14")


class PassphraseVolume(Volume):
    """A volume whose passphrase is in a file, until its host is told to open it by itself."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._config = root / "tdefs.yaml"
        self._opens_by_itself = False

    @property
    def unlock(self) -> list[str]:
        if self._opens_by_itself:
            return ["--auto-open", "--config", str(self._config)]
        return ["--passphrase-file", str(self.key_file)]

    def enable_auto_open(self) -> None:
        """Have this volume's host open the keystore from now on; its host key lies beside, not in /var/lib."""
        host_keys = self.root / "host-keys"
        host_keys.mkdir(mode=0o700)
        self._config.write_text(f"version: 1\nvolumes:\n  {self.backing}:\n    host_key_directory: {host_keys}\n")
        self.run("auto-open", "enable", "--host-key", "--config", self._config)
        self._opens_by_itself = True

    def change_passphrase(self) -> Path:
        """Give the first protector another passphrase; return the file with the old one."""
        old, new = self.key_file.with_name(f"old-{secrets.token_hex(4)}"), self.key_file.with_name("new")
        new.touch(0o600)
        new.write_text(secrets.token_hex(16))
        self.run("protector", "change", "pr_1", "--new-passphrase-file", new, *CHEAP)
        self.key_file.rename(old)
        new.rename(self.key_file)
        return old

    def run(self, *words: str | Path) -> str:
        """Run a command on this volume that needs a secret; return what it prints."""
        return self.tdefs(*words, "--volume", self.backing, *self.unlock).stdout

    def opens_with(self, secret: Path) -> bool:
        """Whether the passphrase in a file unlocks it."""
        words = ("protector", "test", "--volume", str(self.backing), "--passphrase-file", str(secret))
        code = self.tdefs(*words, check=False).returncode
        assert code in (Exit.OK, Exit.WRONG_SECRET)
        return code == Exit.OK


def passphrase_volume(space: Workspace, name: str) -> PassphraseVolume:
    volume = PassphraseVolume(space.directory(name) / "volume")
    space.volumes.append(volume)
    return volume


@dataclass(frozen=True)
class Host:
    """A server and the volume under it."""

    volume: PassphraseVolume
    server: Server

    @classmethod
    def new(cls, space: Workspace, name: str) -> Host:
        volume = passphrase_volume(space, name)
        return cls(volume, space.server("15", volume.mountpoint))

    def make_primary(self, space: Workspace) -> None:
        """Make a volume and a cluster in it, and start the server."""
        self.volume.init(*CHEAP)
        self.volume.mount(owner=space.account)
        self.server.initdb()
        self.server.configure({"wal_keep_size": "256MB", "autovacuum": "off", "hot_standby": "on"})
        self.server.start()

    def follow(self, primary: Host, space: Workspace) -> None:
        """Builds a standby of the primary by pg_basebackup into this host's mount, and starts it."""
        self.volume.mount(owner=space.account)
        primary.server.run("pg_basebackup", "-D", self.server.pgdata, "-X", "stream", "-c", "fast", "-R")
        place = {"port": str(self.server.port), "unix_socket_directories": f"'{self.server.socket_directory}'"}
        self.server.configure(place)
        self.server.start()

    def restart(self) -> None:
        """Server and mount end and start again, as with the machine."""
        self.server.stop()
        self.volume.umount()
        self.volume.mount()
        self.server.start()

    def catches_up(self, primary: Host) -> bool:
        """Whether this standby comes to have all that the primary has written."""
        end = primary.server.psql("SELECT pg_current_wal_flush_lsn()")
        return wait_until(
            lambda: self.server.psql(f"SELECT pg_last_wal_replay_lsn() >= '{end}'") == "t",
            LAG,
        )

    def has_all_of(self, primary: Host, sql: str) -> None:
        """Check that a query finds here what it finds on the primary."""
        assert self.catches_up(primary), self.server.log_tail()
        assert self.server.psql(sql) == primary.server.psql(sql)

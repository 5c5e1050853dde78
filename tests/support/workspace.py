"""The directory of one test run, and everything in it that must be gone at its end."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tdefs.volume.description import ROOTS_LOGS, log_name
from tests.support import postgres
from tests.support.account import Account
from tests.support.mounts import detach, mounts_below
from tests.support.postgres import Installation
from tests.support.processes import end, processes_in
from tests.support.server import Server
from tests.support.volume import Volume


class Workspace:
    """A directory that every user may pass through, and what tests have started in it."""

    def __init__(self) -> None:
        # scripts/test.sh names a directory of its own, where it clears up should this process be killed.
        parent = os.environ.get("TDEFS_TEST_WORK", "/var/tmp")
        self.root = Path(tempfile.mkdtemp(prefix="tdefs-test-", dir=parent))
        self.root.chmod(0o755)
        self.account = Account.of_server()
        self.volumes: list[Volume] = []
        self.servers: list[Server] = []

    def directory(self, name: str) -> Path:
        """A new empty directory; the name is shortened to keep the paths of sockets short."""
        path = Path(tempfile.mkdtemp(prefix=f"{name[:24]}-", dir=self.root))
        path.chmod(0o755)
        return path

    def volume(self, name: str = "volume") -> Volume:
        """A new volume, not yet initialised."""
        volume = Volume(self.directory(name) / "volume")
        self.volumes.append(volume)
        return volume

    def installation(self, version: str) -> Installation:
        """The programs of a PostgreSQL version, where the server's user can run them."""
        if Path("/usr/lib/postgresql", version).exists() or version != "18":
            return postgres.distribution(version)
        return postgres.embedded(version, self.root / f"postgresql-{version}")

    def server(self, version: str, pgdata: Path) -> Server:
        """A server for a data directory that is empty or a cluster."""
        server = Server(self.installation(version), self.account, pgdata, self.directory(f"pg{version}"))
        self.servers.append(server)
        return server

    def data_directory(self, name: str) -> Path:
        """A plain directory that a cluster or a tablespace can be put in."""
        path = self.directory(name) / "pgdata"
        path.mkdir(mode=0o700)
        self.account.own(path)
        return path

    def release(self, volumes: int, servers: int) -> None:
        """Stop and unmount what was added after the first ``volumes`` volumes and ``servers`` servers."""
        for server in self.servers[servers:]:
            server.discard()
        for volume in self.volumes[volumes:]:
            volume.discard()
        del self.servers[servers:]
        del self.volumes[volumes:]

    def close(self) -> None:
        """End everything and remove the directory, whatever state the tests have left it in.

        Also the logs of root's daemons, of volumes below it that were mounted without ``--log-file``.
        """
        self.release(0, 0)
        end(processes_in(self.root))
        for point in mounts_below(self.root):
            detach(point)
        shutil.rmtree(self.root, ignore_errors=True)
        name = log_name(self.root).removesuffix(".log")
        for log in ROOTS_LOGS.glob("*"):
            if log.name.startswith(f"{name}-"):
                log.unlink(missing_ok=True)

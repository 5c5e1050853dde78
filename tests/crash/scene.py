"""A cluster with clients that keep a ledger, on a volume that something is about to happen to."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from random import Random

from tests.crash.ledger import Ledger
from tests.crash.power.disk.model import Keeps
from tests.crash.power.disk.mounted import PowerCutDisk
from tests.support.mounts import detach
from tests.support.processes import is_postgres, processes_in, wait_until
from tests.support.server import Server
from tests.support.workspace import Workspace

#: What can go on beside commits; see :class:`Ledger`.
DISTURBANCES = ("nothing", "checkpoints", "segment_switches", "rewrites", "definitions", "new_databases")
SYNC_METHODS = ("fdatasync", "fsync", "open_datasync", "open_sync")

_SETTINGS = {
    "shared_buffers": "4MB",  # so that dirty pages are evicted all the time
    "max_wal_size": "8MB",  # and checkpoints are frequent
    "min_wal_size": "4MB",
    "checkpoint_timeout": "30s",
    "checkpoint_completion_target": "0.1",
    "bgwriter_delay": "10ms",
    "autovacuum_naptime": "1s",
    "max_connections": "20",
    "wal_init_zero": "on",
    "restart_after_crash": "off",
}


class Scene:
    """One cluster through any number of crashes."""

    def __init__(self, workspace: Workspace, *, disk: PowerCutDisk | None = None, plain: bool = False) -> None:
        """:param disk: what the backing directory shall lie on

        :param plain: whether PostgreSQL works on the disk itself, without tdefs
        """
        self.volume = workspace.volume("scene")
        self.disk = disk
        self._plain = plain
        if disk:
            self.volume.backing = disk.mountpoint / "backing"
        pgdata = self.volume.mountpoint
        if plain:
            assert disk, "a plain cluster is for comparison on the disk"
            pgdata = self.volume.backing
        self.server: Server = workspace.server("15", pgdata)
        self.ledger = Ledger()

    def create(self) -> None:
        """Make volume, cluster and tables, and end with everything stopped and durable."""
        if self.disk:
            self.disk.switch_on()
        if self._plain:
            self.volume.backing.mkdir(mode=0o700)
            self.server.account.own(self.volume.backing)
        else:
            self.volume.init()
            self.volume.mount(owner=self.server.account)
        self.server.initdb("--wal-segsize=1", "--no-sync")
        self.server.configure(_SETTINGS)
        self.server.start()
        self.ledger.set_up(self.server)
        self.stop()

    def start(self, sync_method: str = "fdatasync") -> None:
        """Mount, and start the server, which recovers if need be."""
        if not self._plain:
            self.volume.mount()
            self.expect_no_tampering()
        self.server.start(f"-c wal_sync_method={sync_method}", seconds=120)

    def stop(self) -> None:
        """Stop the server and unmount."""
        self.server.stop()
        if not self._plain:
            self.expect_no_tampering()
            self.volume.umount()

    def expect_no_tampering(self) -> None:
        """Nobody has touched the volume: what a crash leaves must never be taken for an attack."""
        place: tuple[str | Path, ...] = ("--volume", self.volume.backing, *self.volume.unlock)
        assert self.volume.tdefs("accept", "--list", *place).stdout == ""

    def accept_older_copy(self) -> None:
        """Say that a snapshot is meant; its keystore, elsewhere, knows of later times."""
        if not self._plain:
            self.volume.tdefs("accept", "--older-copy", "--volume", self.volume.backing, *self.volume.unlock)

    def kill(self) -> None:
        """The daemon dies, and the server with it."""
        server = self._processes_of_server()
        self.ledger.expect_death()
        self.volume.kill()
        self._bury(server)

    def cut_power(self, keeps: Keeps, dice: Random, *, upon_write: bool) -> int:
        """The machine dies, at once or during one of the next writes; returns how much was not durable."""
        assert self.disk
        server = self._processes_of_server()
        self.ledger.expect_death()
        moment = dice.randrange(1, 20) if upon_write else None
        lost = self.disk.cut(keeps, dice.randrange(1 << 32), moment)
        if self.volume.daemons:
            self.volume.kill()
        self._bury(server)
        self.disk.switch_on()
        return lost

    def abandon(self) -> None:
        """End everything, whatever state it is in."""
        server = self._processes_of_server()
        self.ledger.expect_death()
        if self.volume.daemons:
            self.volume.kill()
        self._bury(server)
        detach(self.volume.mountpoint)

    def check(self) -> None:
        """After :meth:`start`: everything acknowledged is there and nothing is corrupt; ends with a stop."""
        self.ledger.check(self.server)
        self.server.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check")
        databases = self.server.psql("SELECT oid FROM pg_database WHERE datconnlimit <> -2").split()
        self.stop()
        if not self._plain:
            self.volume.tdefs("verify", self.volume.backing, *self.volume.unlock)
            self.volume.mount()
        self._remove_abandoned_databases(databases)
        self.server.run("pg_checksums", "--check", "-D", self.server.pgdata)
        if not self._plain:
            self.volume.umount()

    def _remove_abandoned_databases(self, known: list[str]) -> None:
        """Remove what an unfinished CREATE or DROP DATABASE left behind.

        PostgreSQL neither syncs nor reads these files again: a power cut may have torn their pages, and
        pg_checksums looks at all that lies below base/.
        """
        for directory in (self.server.pgdata / "base").iterdir():
            if directory.name.isdigit() and directory.name not in known:
                shutil.rmtree(directory)

    def survive_kill(self, disturbance: str, dice: Random) -> None:
        """One kill of the daemon under load, and the reckoning."""
        self.start(dice.choice(SYNC_METHODS))
        with self.ledger.clients(self.server, disturbance, dice):
            self.sleep(dice)
            self.kill()
        self.start()
        self.check()

    def survive_power_cut(
        self, disturbance: str, dice: Random, *, sync_method: str | None = None, tearing: float = 0.5
    ) -> None:
        """One power cut under load, and the reckoning.

        :param tearing: how likely the cut comes during a write
        """
        keeps = dice.choice(list(Keeps))
        self.start(sync_method or dice.choice(SYNC_METHODS))
        with self.ledger.clients(self.server, disturbance, dice):
            self.sleep(dice)
            self.cut_power(keeps, dice, upon_write=dice.random() < tearing)
        self.start()
        self.check()

    def sleep(self, dice: Random) -> None:
        """Let the load run for a moment of random length."""
        wait_until(lambda: False, dice.uniform(0.1, 2.5))

    def _processes_of_server(self) -> list[int]:
        return [pid for pid in processes_in(self.server.pgdata) if is_postgres(pid)]

    def _bury(self, server: list[int]) -> None:
        """Wait until nothing of the server is left, not even a zombie, which pg_ctl would take for a live one."""
        self.server.discard()
        assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in server), 60)


class Snapshot:
    """A scene at rest, to begin again from: the disk's image and the ledger."""

    def __init__(self, scene: Scene, image: Path) -> None:
        """End the disk, which a later :meth:`restore` switches on again."""
        assert scene.disk
        self._scene = scene
        self._image = image
        scene.disk.switch_off(image)
        self._ledger = deepcopy_of(scene.ledger)

    def restore(self) -> Scene:
        """Return the scene as it was."""
        assert self._scene.disk
        self._scene.disk.discard()
        self._scene.disk.switch_on(self._image)
        self._scene.accept_older_copy()
        self._scene.ledger = deepcopy_of(self._ledger)
        return self._scene


def deepcopy_of(ledger: Ledger) -> Ledger:
    """A ledger with the same accounts, which goes its own way."""
    copy = Ledger()
    copy.accounts = deepcopy(ledger.accounts)
    copy.tables, copy.databases = deepcopy(ledger.tables), deepcopy(ledger.databases)
    return copy

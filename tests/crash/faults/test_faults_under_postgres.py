"""A server under load meets each kind of failing disk, and no acknowledged commit is lost.

PostgreSQL is told the errno of the disk, panics or refuses, and goes on where it was when the disk works again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random

import pytest

from tests.crash.conftest import Dice
from tests.crash.faults.orders import Faults, Order
from tests.crash.scene import SYNC_METHODS, Scene
from tests.support.processes import wait_until
from tests.support.workspace import Workspace

#: Seconds after which PostgreSQL must have met the fault.
_PATIENCE = 30


@dataclass(frozen=True)
class Failing:
    """A way in which a disk fails."""

    methods: tuple[str, ...]
    errnos: tuple[int, ...]
    #: What goes on in the cluster meanwhile, so that such calls are made.
    disturbances: tuple[str, ...]


_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHANGES = (
    *("pwrite", "ftruncate", "create", "mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod"),
    *("fsync", "fdatasync", "set_mtime", "futimens", "utimens", "chmod", "fchmod"),
)
WAYS = {
    "write": Failing(("pwrite", "ftruncate"), (*_FULL, errno.EIO), ("rewrites", "definitions", "checkpoints")),
    "sync": Failing(("fsync", "fdatasync"), (errno.EIO, *_FULL), ("checkpoints", "segment_switches", "nothing")),
    "make": Failing(("create", "mkdir"), (*_FULL, errno.EIO), ("definitions", "rewrites", "new_databases")),
    "open": Failing(("open", "create"), (errno.EMFILE, errno.ENFILE, errno.EIO), ("definitions", "rewrites")),
    "rename": Failing(("rename",), (errno.EIO, *_FULL), ("segment_switches", "checkpoints")),
    "read": Failing(("pread", "pread_cached"), (errno.EIO,), ("checkpoints", "rewrites")),
    "change anything": Failing(_CHANGES, (errno.EROFS, errno.EIO), ("definitions", "checkpoints", "rewrites")),
}


class FaultyScene(Scene):
    """A cluster on a mount whose calls can be made to fail."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.faults = Faults(self.volume, workspace.directory("faults"))

    def survive_fault(self, failing: Failing, code: int, dice: Random) -> None:
        """The disk fails under load, and works again; the mount goes on all the while."""
        self.start_server(dice.choice(SYNC_METHODS))
        server = self._processes_of_server()
        with self.ledger.clients(self.server, dice.choice(failing.disturbances), dice):
            self.sleep(dice)
            self.ledger.expect_death()
            failures = self._failures()
            told = os.path.getsize(self.server.log)
            skip = dice.choice((0, 1, 5, 20))
            with self.faults.armed(Order(methods=failing.methods, errno=code, skip=skip)):
                if "pread" in failing.methods:
                    self._empty_cache()
                met = wait_until(lambda: os.strerror(code) in self._log_from(told), _PATIENCE)
                self.sleep(dice)
            self._bury(server)
        assert met, f"PostgreSQL was not told; it says\n{self._log_from(told)[-2000:]}"
        assert self._failures() > failures
        self.start_server()
        self.ledger.check(self.server)
        self.server.stop()

    def start_server(self, sync_method: str = "fdatasync") -> None:
        """Starts the server on the volume, which is mounted."""
        options = f"-c wal_sync_method={sync_method}"
        log = self.server.log
        self.server.run("pg_ctl", "start", "-w", "-D", self.server.pgdata, "-l", log, "-o", options)

    def _failures(self) -> int:
        return sum(self.volume.status()["failures"].values())

    def _log_from(self, position: int) -> str:
        with self.server.log.open(errors="replace") as log:
            log.seek(position)
            return log.read()

    def stop(self) -> None:
        """Stops the server and unmounts; what failed while something was taken back is told of then."""
        self.server.stop()
        self.expect_no_tampering()
        self.volume.umount(disk_failed=True)

    def _empty_cache(self) -> None:
        """Has the kernel forget what it has read from the files of the mount."""
        for path in Path(self.server.pgdata, "base").rglob("*"):
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError:
                continue  # as it shall be by now, or gone
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


@pytest.fixture(scope="module")
def scene(workspace: Workspace) -> Iterator[FaultyScene]:
    """A cluster on a mounted volume; in the end nothing in it is corrupt."""
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    scene = FaultyScene(workspace)
    scene.create()
    scene.volume.mount()
    yield scene
    daemons = scene.volume.daemons
    assert len(daemons) == 1
    scene.start_server()
    scene.check()
    workspace.release(volumes, servers)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_failing_disk_reaches_postgres_and_loses_no_commit(scene: FaultyScene, way: str, dice: Dice) -> None:
    failing = WAYS[way]
    errnos = cycle(dice.random().sample(failing.errnos, len(failing.errnos)))
    before = scene.ledger.commits
    for number, code in zip(range(dice.rounds(1)), errnos, strict=False):
        print(f"fault {number}: {errno.errorcode[code]}")
        scene.survive_fault(failing, code, dice.random(number))
    print(f"acknowledged commits: {scene.ledger.commits - before}")
    assert scene.ledger.commits > before

"""What the FUSE file systems have in common: a backing directory, a mount point and a daemon."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

from benchmarks.systems.base import LIMIT, System, Unavailable
from tdefs.mounts.known import device_of, raise_kernel_limits
from tests.support.mounts import is_mounted
from tests.support.processes import arguments, processes_in, wait_until


class FuseSystem(System):
    """Mounted by root for everyone: the daemon is root's, the server runs as its own user."""

    @property
    def storage(self) -> Path:
        return self.root / "mnt"

    @property
    def backing(self) -> Path:
        return self.root / "backing"

    @property
    def below(self) -> Path:
        return self.backing

    @property
    @abstractmethod
    def program(self) -> str:
        """The name of the daemon's program."""

    @abstractmethod
    def initialize(self) -> None:
        """Make an empty volume in the backing directory."""

    @abstractmethod
    def start_daemon(self) -> None:
        """Run the mount command."""

    def prepare(self) -> None:
        self.backing.mkdir()
        self.storage.mkdir()
        self.initialize()

    def mount(self) -> None:
        self.start_daemon()
        if not wait_until(lambda: is_mounted(self.storage), 20):
            raise Unavailable(f"{self.program} has mounted nothing")
        self.daemons = [
            pid
            for pid in processes_in(self.backing)
            # a program of Python's is behind the interpreter's own arguments
            if any(Path(word).name == self.program for word in arguments(pid)[:4])
        ]
        if not self.daemons:
            raise Unavailable(f"no process of {self.program} serves {self.storage}")
        if self.variant.raise_limits and not raise_kernel_limits(device_of(self.storage)):
            raise Unavailable("the kernel's limits of the mount cannot be raised here")
        self.give_to_server()

    def unmount(self) -> None:
        # What has just closed a file may keep the mount busy for a moment.
        if not wait_until(self._is_unmounted, LIMIT / 4):
            raise TimeoutError(f"{self.storage} stays busy")
        self.wait_for_daemons()

    def _is_unmounted(self) -> bool:
        try:
            self.run("umount", self.storage)
        except Unavailable:
            return False
        return True

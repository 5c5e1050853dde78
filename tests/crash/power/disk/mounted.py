"""A mounted disk whose power can be cut, as a test uses it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

from tests.crash.power.disk.model import ROOT, Keeps
from tests.support.mounts import detach, is_mounted
from tests.support.processes import wait_until

_REPOSITORY = Path(__file__).parents[4]


class PowerCutDisk:
    """A disk that is served by a process of its own; between two cuts it lives in a file, its image."""

    def __init__(self, directory: Path, *, journal: bool = False) -> None:
        """:param directory: an empty one, for the mount point, the socket and the image

        :param journal: see :class:`tests.crash.power.disk.model.Disk`
        """
        self._journal = journal
        self.mountpoint = directory / "disk"
        self.mountpoint.mkdir()
        self._socket = directory / "power"
        self._image = directory / "image"
        self._process: subprocess.Popen[bytes] | None = None

    def switch_on(self, image: Path | None = None) -> None:
        """Mounts the disk as it was left, or as an image has it."""
        image = image or (self._image if self._image.exists() else None)
        self._socket.unlink(missing_ok=True)
        words = [self.mountpoint, self._socket, "journal" if self._journal else "", *([image] if image else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.power.disk.serve", *map(str, words)], cwd=_REPOSITORY
        )
        ready = wait_until(lambda: self._socket.exists() and self._serves(), 30)
        assert ready, f"the disk does not serve: exit code {self._process.poll()}"

    def sync(self) -> None:
        """Makes everything durable, as syncfs(2) would: the kernel keeps that call from a FUSE file system."""
        self._command(sync="all")

    def cut(self, keeps: Keeps, seed: int, upon_write: int | None = None) -> int:
        """Cuts the power: the mount is dead, its image holds what is left; returns how much was not durable.

        :param upon_write: not at once, but during the write of this number from now on
        """
        moment = {} if upon_write is None else {"upon_write": str(upon_write)}
        unsynced = self._command(end="now", cut=keeps.value, seed=str(seed), image=str(self._image), **moment)
        self._ended()
        return unsynced

    def switch_off(self, image: Path | None = None) -> None:
        """Ends with everything durable, in an image."""
        self._command(end="now", sync="all", image=str(image or self._image))
        self._ended()

    def discard(self) -> None:
        """Ends, whatever state it is in."""
        if self._process and self._process.poll() is None:
            self._process.kill()
        self._ended()

    def _ended(self) -> None:
        if self._process:
            self._process.wait(timeout=30)
            self._process = None
        if is_mounted(self.mountpoint):
            detach(self.mountpoint)

    def _serves(self) -> bool:
        try:
            return is_mounted(self.mountpoint) and self.mountpoint.stat().st_ino == ROOT
        except OSError:
            return False

    def _command(self, **command: str) -> int:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(60)
            line.connect(str(self._socket))
            line.sendall(json.dumps(command).encode())
            answer: int = json.loads(line.recv(1 << 16))
        return answer

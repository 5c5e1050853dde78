"""Clusters that are made once, and are for each test of a module as they were made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace


class Pristine:
    """What unmounted volumes hold: backing directories, and the keystores that know of their sessions."""

    def __init__(self, server: Server, *volumes: Volume) -> None:
        self._server = server
        self._volumes = volumes
        for volume in volumes:
            kept = volume.root / "pristine"
            kept.mkdir()
            _make_equal(volume.backing, kept / "backing")
            for path in volume.root.glob("keystore*"):
                shutil.copy2(path, kept)

    def restore(self) -> None:
        """End what a test has left, and undo it; the logs are empty then."""
        self._server.discard()
        for volume in self._volumes:
            volume.discard()
            kept = volume.root / "pristine"
            _make_equal(kept / "backing", volume.backing)
            for path in kept.glob("keystore*"):
                shutil.copy2(path, volume.root)
            os.truncate(volume.log, 0)
        os.truncate(self._server.log, 0)


def _make_equal(source: Path, to: Path) -> None:
    """Make a directory as another is; directories that both have stay what they are, as a keystore knows them."""
    subprocess.run(["rsync", "-aHX", "--checksum", "--delete", f"{source}/", f"{to}/"], check=True)


@contextmanager
def cluster_at_rest(
    space: Workspace, version: str, directory: str, settings: dict[str, str], prepare: Callable[[Server], object]
) -> Iterator[tuple[Volume, Server, Pristine]]:
    """Make a cluster on a volume where everything is encrypted; stopped, and unmounted.

    :param directory: where it lies on the mount
    :param settings: for its postgresql.conf
    :param prepare: what is done in it while its server runs
    """
    volumes, servers = len(space.volumes), len(space.servers)
    try:
        volume = space.volume()
        volume.init()
        volume.mount(owner=space.account)
        server = space.server(version, volume.mountpoint / directory)
        server.initdb("--no-sync", "--wal-segsize=1")
        server.configure(settings)
        server.start()
        prepare(server)
        server.stop()
        volume.umount()
        yield volume, server, Pristine(server, volume)
    finally:
        space.release(volumes, servers)

"""The directory of one run, and everything in it that must be gone at its end."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.site import Site
from benchmarks.sizes import Sizes
from benchmarks.systems.base import System, Variant
from tests.support.account import Account
from tests.support.mounts import detach, mounts_below
from tests.support.postgres import Installation
from tests.support.processes import end, processes_in


class WorkDirectory:
    """A new directory on the disk that is measured; everything is below it."""

    def __init__(
        self, parent: Path, installation: Installation, sizes: Sizes, systems: Mapping[str, type[System]]
    ) -> None:
        """
        :param systems: those that can be measured, by name
        """
        self.root = Path(tempfile.mkdtemp(prefix="tdefs-bench-", dir=parent))
        self.root.chmod(0o755)  # the server's user must pass
        self._installation = installation
        self._sizes = sizes
        self._systems = systems
        self._account = Account.of_server()
        self._sites: list[Site] = []

    def site(self, name: str, variant: Variant, *, suffix: str = "") -> Site:
        """Return a site with a directory of its own, not opened."""
        root = self.root / f"{name}{suffix}"
        root.mkdir()
        site = Site(name, self._systems[name](root, self._account, variant), self._installation, self._sizes)
        self._sites.append(site)
        return site

    def discard(self, site: Site) -> None:
        """Take a site away, whatever state it is in."""
        try:
            site.discard()
        finally:
            self._clear(site.system.root)
            self._sites.remove(site)

    def close(self) -> None:
        """Take everything away; Ctrl-C does not stop it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for site in list(self._sites):
            # Whatever fails, the others must go too, and what a site has left is looked for below.
            with suppress(Exception):
                self.discard(site)
        self._clear(self.root)

    @staticmethod
    def _clear(directory: Path) -> None:
        end(processes_in(directory))
        for point in mounts_below(directory):
            detach(point)
        # A daemon ends when its mount is gone; while it lives, it may still make files.
        end(processes_in(directory))
        shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A directory on the disk: what everything is compared with."""

from __future__ import annotations

from pathlib import Path

from benchmarks.systems.base import System, Variant

VARIANTS = (Variant("a directory"), Variant("a directory", wal_sync_method="fdatasync"))


class Plain(System):
    """No file system of its own."""

    @property
    def storage(self) -> Path:
        return self.root / "storage"

    def prepare(self) -> None:
        self.storage.mkdir()
        self.give_to_server()

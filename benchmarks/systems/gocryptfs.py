"""gocryptfs, in Go: AES-256-GCM."""

from __future__ import annotations

from pathlib import Path

from benchmarks.systems.base import Variant
from benchmarks.systems.fuse import FuseSystem

VARIANTS = (
    # tdefs does not encrypt names either
    Variant("tuned", ("-plaintextnames",), ("-kernel_cache",), raise_limits=True, wal_sync_method="fdatasync"),
    Variant("tuned as tdefs", ("-plaintextnames",), ("-kernel_cache",), raise_limits=True),
    Variant("default", wal_sync_method="fdatasync"),
)


class Gocryptfs(FuseSystem):
    """As Debian packages it."""

    @property
    def program(self) -> str:
        return "gocryptfs"

    def initialize(self) -> None:
        password = self.root / "password"
        password.write_text("bench\n")
        # -scryptn: the password's cost is paid once, at the mount, and is no part of what is measured
        self.run(
            "gocryptfs", "-init", "-q", "-passfile", password, "-scryptn", "10", *self.variant.init, self.backing
        )

    def start_daemon(self) -> None:
        options: tuple[str | Path, ...] = (
            "-q",
            "-nosyslog",
            "-passfile",
            self.root / "password",
            "-allow_other",
            *self.variant.mount,
        )
        self.run("gocryptfs", *options, self.backing, self.storage)

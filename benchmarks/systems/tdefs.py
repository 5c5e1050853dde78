"""This project, as its README tells users to mount it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from benchmarks.systems.base import Variant
from benchmarks.systems.fuse import FuseSystem

VARIANTS = (Variant("as recommended"),)
_UNLOCK = ("--key-command", "printf %%064d 7")


class Tdefs(FuseSystem):
    """Everything is encrypted, with AES-256-XTS."""

    executable: ClassVar[Path] = Path(sys.executable).parent / "tdefs"

    @property
    def program(self) -> str:
        return "tdefs"

    def initialize(self) -> None:
        self._tdefs("init", self.backing, *_UNLOCK)

    def start_daemon(self) -> None:
        log = self.root / "daemon.log"
        self._tdefs("mount", self.backing, self.storage, *_UNLOCK, "--log-file", log, *self.variant.mount)

    def unmount(self) -> None:
        self._tdefs("umount", self.storage)
        self.wait_for_daemons()

    def _tdefs(self, *words: str | Path) -> None:
        self.run(self.executable, *words)


def program_of(checkout: Path) -> Path:
    """Return the program ``tdefs`` of a checkout that scripts/setup.sh has set up."""
    return checkout.resolve() / ".venv" / "bin" / "tdefs"


def of_checkout(checkout: Path) -> type[Tdefs]:
    """Return the system that another checkout's tdefs is."""

    class OtherTdefs(Tdefs):
        executable = program_of(checkout)

    return OtherTdefs

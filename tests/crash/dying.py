"""tdefs whose daemon is killed while it writes down that the volume rests.

Called like tdefs, with a directory outside of the mount as the first argument: ``dying.py DIRECTORY mount ...``.
From when an unmount writes the manifest, the system calls that change something are counted, and named in the file
``made``; before the one of which the number stands in the file ``step`` the process kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdefs.cli import main
from tdefs.manifest.bound import Bound

CHANGING = ("write", "pwrite", "ftruncate", "fchmod", "fchown", "fsync", "fdatasync", "rename", "unlink", "mkdir")


class Death:
    """Count what is done, and end the process at a step."""

    def __init__(self, directory: Path) -> None:
        self._step = int((directory / "step").read_text())
        self._made = os.open(directory / "made", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._note = os.write
        self._count = 0

    def begin(self) -> None:
        """Count from now on."""
        for name in CHANGING:
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.open = self._counted("open", os.open, lambda _, flags, *__, **___: bool(flags & os.O_CREAT))

    def _counted(
        self, name: str, real: Callable[..., Any], counts: Callable[..., bool] = lambda *_, **__: True
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if counts(*arguments, **named):
                if self._count == self._step:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._count += 1
                self._note(self._made, f"{name}\n".encode())
            return real(*arguments, **named)

        return call


def run(directory: Path, arguments: list[str]) -> int:
    """Run tdefs, whose daemon will die."""
    finish = Bound.finish

    def die_meanwhile(self: Bound) -> None:
        Death(directory).begin()
        finish(self)

    Bound.finish = die_meanwhile  # type: ignore[method-assign]
    return main.main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))

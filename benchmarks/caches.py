"""Making the machine's caches the same for every measurement."""

from __future__ import annotations

import os
from pathlib import Path


def settle() -> None:
    """Write out what earlier measurements have left, so that it is not written during the next."""
    os.sync()


def drop() -> None:
    """Empty the kernel's caches: those of the mounts, and those of the files below them."""
    # Twice: writing out a mount's pages makes dirty pages in the file below.
    os.sync()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")

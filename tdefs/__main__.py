"""``python -I -m tdefs``: what the command ``tdefs`` runs, with a clean environment (see cli/launcher.c)."""

from __future__ import annotations

from pathlib import Path

from tdefs.host import harden_process


def _run() -> None:
    # "python3" would say little in a list of processes, and in what the kernel logs of one that it has killed
    Path("/proc/self/comm").write_text("tdefs", encoding="ascii")
    # until then another process of this user may attach itself; the other modules take most of the time
    harden_process()
    from tdefs.cli.main import run

    run()


if __name__ == "__main__":
    _run()

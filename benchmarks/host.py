"""The machine that a run was made on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography.hazmat.backends.openssl import backend

from tests.support.postgres import Installation

#: Above this, something else is running, and the figures will be noisy.
QUIET_LOAD = 0.5
_REPOSITORY = Path(__file__).parent.parent


def facts(directory: Path, installation: Installation, baseline: Path | None) -> dict[str, Any]:
    """Return what a reader must know of the machine to judge the figures.

    :param baseline: the checkout of another state of tdefs that is measured, or none
    """
    return {
        "kernel": platform.release(),
        "processor": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "memory_mb": int(_field(Path("/proc/meminfo"), "MemTotal").split()[0]) // 1024,
        "disk": _output("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(directory)),
        "kernel_aes": sorted(set(_crypto_drivers("xts(aes)"))),
        "load_before": os.getloadavg()[0],
        "versions": {
            "tdefs": f"{metadata.version('tdefs')} {_commit(_REPOSITORY)}",
            **({} if baseline is None else {"baseline": _commit(baseline)}),
            "postgresql": _output(str(installation.program("postgres")), "--version"),
            "python": platform.python_version(),
            "pyfuse3": metadata.version("pyfuse3"),
            "cryptography": f"{metadata.version('cryptography')} ({backend.openssl_version_text()})",
            "gocryptfs": _output("gocryptfs", "-version"),
            "encfs": _output("encfs", "--version"),
            "fio": _output("fio", "--version"),
        },
    }


def free_gb(directory: Path) -> float:
    """Return what is free on the disk of a directory."""
    return shutil.disk_usage(directory).free / 1e9


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not installed"
    return " ".join((done.stdout or done.stderr).split())


def _commit(checkout: Path) -> str:
    commit = _output("git", "-C", str(checkout), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(checkout), "status", "--porcelain", "--", "tdefs")
    return "uncommitted" if "fatal" in commit else commit + ("+" if changed else "")


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _crypto_drivers(name: str) -> list[str]:
    """The kernel's implementations of a cipher that are loaded; fscrypt's speed depends on which."""
    drivers = []
    for block in Path("/proc/crypto").read_text().split("\n\n"):
        entries = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in entries.items()}
        if fields.get("name") == name:
            drivers.append(fields["driver"])
    return drivers

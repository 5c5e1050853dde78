"""Packages of the distribution's archive, sources too, fetched without a change to the machine's configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

#: Seconds after which a download hangs.
LIMIT = 600


class NotAvailable(Exception):
    """A package cannot be had: the message says which, and what to do."""


class Archive:
    """The archive that this machine installs from, with package lists of its own that name the sources, too."""

    def __init__(self, directory: Path) -> None:
        """:param directory: for the package lists and what is downloaded; must exist"""
        self.directory = directory
        sources = directory / "sources.list"
        lists = directory / "lists"
        (lists / "partial").mkdir(parents=True)
        sources.write_text("".join(f"{kind} {place}\n" for place in _places() for kind in ("deb", "deb-src")))
        # the sandbox user _apt may not write here
        self._options = [
            f"-oDir::Etc::SourceList={sources}",
            "-oDir::Etc::SourceParts=/dev/null",
            f"-oDir::State::Lists={lists}",
            "-oDir::Cache::pkgcache=",
            "-oDir::Cache::srcpkgcache=",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Retries=3",
        ]
        # otherwise lists that cannot be fetched are a warning
        self._apt("apt-get", "-qq", "-oAPT::Update::Error-Mode=any", "update")

    def source_versions(self, package: str) -> list[str]:
        """The versions of a source package that the archive has, the newest first; none if it has no such."""
        said = self._apt("apt-cache", "madison", package)
        versions = [line.split("|")[1].strip() for line in said.splitlines() if line.endswith("Sources")]
        return list(dict.fromkeys(versions))

    def source(self, package: str, version: str) -> Path:
        """Downloads a source package; returns the upstream tar file."""
        self._apt("apt-get", "-qq", "source", "--download-only", f"{package}={version}")
        found = list(self.directory.glob(f"{package}_*.orig.tar.*"))
        if len(found) != 1:
            raise NotAvailable(f"the source package {package} {version} has no upstream tar file: {found}")
        return found[0]

    def unpack(self, package: str, version: str | None, destination: Path) -> None:
        """Downloads a binary package and unpacks it, without installing it."""
        self._apt("apt-get", "-qq", "download", f"{package}={version}" if version else package)
        (file,) = self.directory.glob(f"{package}_*.deb")
        run(["dpkg-deb", "-x", file, destination], self.directory)

    def _apt(self, program: str, *arguments: str) -> str:
        try:
            return run([program, *self._options, *arguments], self.directory)
        except NotAvailable as error:
            raise NotAvailable(f"{error}HINT: check the network and the machine's package sources") from None


def installed_source(package: str) -> tuple[str, str]:
    """The source package, and its version, that an installed package was built from."""
    said = run(["dpkg-query", "-W", "-f", "${source:Package} ${source:Version}", package], Path("/"))
    name, version = said.split()
    return name, version


def _places() -> list[str]:
    """The places that this machine's own configuration has packages of the distribution from."""
    wanted: list[str | Path] = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    wanted += ["Identifier: Packages", "Origin: Debian"]
    places = run(wanted, Path("/")).splitlines()
    if not places:
        # an image may come without package lists
        run(["apt-get", "-qq", "update"], Path("/"))
        places = run(wanted, Path("/")).splitlines()
    if not places:
        raise NotAvailable("this machine has no package source of Debian (see apt-get indextargets)")
    return list(dict.fromkeys(places))


def run(command: list[str | Path], directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """Runs a program; returns what it says.

    :raises NotAvailable: it has failed, and said why
    """
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode != 0:
        words = " ".join(str(word) for word in command if not str(word).startswith("-o"))
        raise NotAvailable(f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout

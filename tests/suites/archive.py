"""Packages of the distribution's archive, sources too, fetched without a change to the machine's configuration."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

#: Seconds after which a download hangs.
LIMIT = 600


class NotAvailable(Exception):
    """A package cannot be had: the message says which, and what to do."""


class Archive:
    """The archive that this machine installs from, with package lists of its own that name the sources, too.

    What the lists name is not always to be had: the archive drops a version when the next one comes, and sources
    may lag behind.
    """

    def __init__(
        self, directory: Path, places: Sequence[str] = (), kinds: Sequence[str] = ("deb", "deb-src")
    ) -> None:
        """
        :param directory: for the package lists and what is downloaded; must exist
        :param places: what follows ``deb`` in a line of sources.list(5); by default those of this machine
        :param kinds: the lists that are wanted, of packages and of sources
        """
        self.directory = directory
        sources = directory / "sources.list"
        lists = directory / "lists"
        (lists / "partial").mkdir(parents=True)
        lines = (f"{kind} {place}\n" for place in places or distribution_places() for kind in kinds)
        sources.write_text("".join(lines))
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
        #: Why some of the lists could not be fetched, or nothing.
        self.problem = ""
        try:
            # otherwise lists that cannot be fetched are a warning
            self._apt("apt-get", "-qq", "-oAPT::Update::Error-Mode=any", "update")
        except NotAvailable as error:
            self.problem = str(error)

    def source_versions(self, package: str) -> list[str]:
        """The versions of a source package that the lists name; none if there is no such."""
        return self._versions(package, "Sources")

    def source(self, package: str, version: str) -> Path:
        """Download a source package; return the upstream tar file."""
        self._apt("apt-get", "-qq", "source", "--download-only", f"{package}={version}")
        names = re.compile(rf"{re.escape(package)}_{re.escape(upstream(version))}\.orig\.tar\.[a-z0-9]+")
        found = [path for path in self.directory.iterdir() if names.fullmatch(path.name)]
        if len(found) != 1:
            raise NotAvailable(f"the source package {package} {version} has no upstream tar file: {found}")
        return found[0]

    def unpack(self, package: str, wanted: str | None, destination: Path) -> str:
        """Download a binary package and unpack it, without installing it; return its version.

        :param wanted: the version that it should be near to; None for the newest
        :raises NotAvailable: none of those that the lists name can be had
        """
        problems = [self.problem] if self.problem else []
        versions = self._versions(package, "Packages")
        for version in by_distance(versions, wanted) if wanted else versions:
            try:
                self._apt("apt-get", "-qq", "download", f"{package}={version}")
            except NotAvailable as error:
                problems.append(str(error))
                continue
            (file,) = self.directory.glob(f"{package}_*.deb")
            run(["dpkg-deb", "-x", file, destination], self.directory)
            return version
        raise NotAvailable("\n".join(problems) or f"the archive has no package {package}")

    def _versions(self, package: str, lists: str) -> list[str]:
        """In the order of apt-cache(8): the newest first, as far as one list has them."""
        said = self._apt("apt-cache", "madison", package)
        versions = [line.split("|")[1].strip() for line in said.splitlines() if line.endswith(lists)]
        return list(dict.fromkeys(versions))

    def _apt(self, program: str, *arguments: str) -> str:
        try:
            return run([program, *self._options, *arguments], self.directory)
        except NotAvailable as error:
            raise NotAvailable(f"{error}HINT: check the network and the machine's package sources") from None


def upstream(version: str) -> str:
    """The part of a package's version that says which upstream release it is made of (deb-version(7))."""
    return version.partition(":")[2 if ":" in version else 0].rpartition("-")[0] or version


def by_distance(versions: Iterable[str], wanted: str) -> list[str]:
    """Versions with the same major number, by how far they are from the wanted one; of two equally far the older.

    Of equal upstream releases the wanted version itself comes first.
    """

    def figures(version: str) -> tuple[int, int]:
        found = re.match(r"(\d+)(?:\D+(\d+))?", upstream(version))
        return (int(found[1]), int(found[2] or 0)) if found else (-1, 0)

    major, minor = figures(wanted)
    near = (version for version in dict.fromkeys(versions) if figures(version)[0] == major)
    return sorted(
        near, key=lambda one: (abs(figures(one)[1] - minor), figures(one)[1] > minor, one != wanted, one)
    )


def distribution_places() -> list[str]:
    """The places that this machine's own configuration has packages of the distribution from, for Archive."""
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


def run(
    command: Sequence[str | Path],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    limit: float = LIMIT,
) -> str:
    """Run a program; return what it says.

    :param limit: seconds after which it hangs
    :raises NotAvailable: it has failed, and said why
    """
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        said, errors = process.communicate(timeout=limit)
    except BaseException:
        # all that a build has started: it would go on writing where the caller removes everything
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode != 0:
        words = " ".join(str(word) for word in command if not str(word).startswith("-o"))
        raise NotAvailable(f"{words}: exit code {process.returncode}\n{said[-4000:]}{errors[-4000:]}")
    return said

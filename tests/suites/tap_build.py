"""PostgreSQL, built from the distribution's source package with what its TAP suites need, ready to run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.suites.archive import Archive, NotAvailable, by_distance, distribution_places, run
from tests.suites.pg_source import REPOSITORY, nearest_source, version_of_server

CACHE = REPOSITORY / ".cache" / "pg-tap"
#: The suites by their directories in the source.
SUITES = {
    "subscription": "src/test/subscription",
    "recovery": "src/test/recovery",
    "pg_basebackup": "src/bin/pg_basebackup",
    "pg_rewind": "src/bin/pg_rewind",
    "pg_verifybackup": "src/bin/pg_verifybackup",
    "pg_upgrade": "src/bin/pg_upgrade",
    "pg_amcheck": "src/bin/pg_amcheck",
}
# What the suites read beside their own directories.
_KEPT = (*SUITES.values(), "src/test/perl", "src/test/regress")
_PREFIX = Path("/usr/local/pgsql")
# A release that this machine's distribution does not have comes from the one that is being made.
_LATER_RELEASES = ("testing", "unstable")
#: Seconds after which a step of the build hangs.
BUILD_LIMIT = 3600
# Where there is no server to be near to: the newest.
_NEWEST = 1000


@dataclass(frozen=True)
class TapBuild:
    """A directory with ``source`` (the suites, their Perl modules, pg_regress) and ``install`` (the server)."""

    directory: Path
    #: Of the source package.
    version: str
    major: int

    def suite(self, name: str) -> Path:
        """The directory of one of :data:`SUITES`."""
        return self.directory / "source" / SUITES[name]

    def files(self, name: str) -> list[Path]:
        """The files of one of :data:`SUITES`."""
        return sorted(self.suite(name).glob("t/*.pl"))

    def environment(self) -> dict[str, str]:
        """Return the variables that the build's own ``make check`` gives the suites, without those for places."""
        source = self.directory / "source"
        installed = self.directory / "install" / _PREFIX.relative_to("/")
        return {
            "PATH": f"{installed / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin",
            "LD_LIBRARY_PATH": str(installed / "lib"),
            "PG_REGRESS": str(source / "src/test/regress/pg_regress"),
            "REGRESS_SHLIB": str(source / "src/test/regress/regress.so"),
            "share_contrib_dir": str(installed / "share" / "extension"),
            "GZIP_PROGRAM": "gzip",
            "TAR": "tar",
            **dict.fromkeys(("with_icu", "with_ssl", "with_ldap", "with_gssapi", "with_readline"), "no"),
            "enable_injection_points": "yes" if _has_injection_points(self.major) else "no",
        }

    def copied_to(self, directory: Path) -> TapBuild:
        """A copy where every user can read it."""
        shutil.copytree(self.directory, directory, symlinks=True)
        run(["chmod", "-R", "a+rX", directory], directory)
        return TapBuild(directory, self.version, self.major)


def prepare(version: str, cache: Path = CACHE) -> TapBuild:
    """The build of a major version, nearest to the installed server if there is one, or else the newest.

    Downloaded and built when it is not cached.

    :raises NotAvailable: neither cache nor archive has it, or it could not be built
    """
    cache.mkdir(parents=True, exist_ok=True)
    cached = [path.name for path in cache.iterdir() if path.name[:1].isdecimal()]
    try:
        wanted = version_of_server(version)
        places: list[str] = []
    except NotAvailable:
        wanted = f"{version}.{_NEWEST}"
        places = list(_later_places())
        if known := by_distance(cached, wanted):
            return TapBuild(cache / known[0], known[0], int(version))
    if wanted not in cached:
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as directory:
            archive = Archive(Path(directory), places, kinds=("deb-src",))
            wanted, source = nearest_source(archive, f"postgresql-{version}", wanted, cached)
            if source is not None:
                _build(source, Path(directory), int(version)).rename(cache / wanted)
    return TapBuild(cache / wanted, wanted, int(version))


def _later_places() -> Iterator[str]:
    """What this machine's configuration would say, were it of a later release."""
    places = [place.split() for place in distribution_places()]
    # the distribution's own updates have no other releases
    base = [(uri, component) for uri, release, component in places if "-" not in release]
    for release in _LATER_RELEASES:
        yield from (f"{uri} {release} {component}" for uri, component in dict.fromkeys(base))


def _has_injection_points(major: int) -> bool:
    return major >= 17


def _build(upstream: Path, directory: Path, major: int) -> Path:
    """Builds and installs the server; returns a directory as TapBuild wants it."""
    tree, ready = directory / "tree", directory / "ready"
    tree.mkdir()
    run(["tar", "-xf", upstream, "-C", tree], directory)
    (top,) = tree.iterdir()
    # -O1: half the time to build, and the suites mostly wait
    options = ["--without-icu", "--without-readline", "--enable-tap-tests", "CFLAGS=-O1"]
    if _has_injection_points(major):
        options.append("--enable-injection-points")
    environment = {"LC_ALL": "C"}
    run([top / "configure", "--quiet", f"--prefix={_PREFIX}", *options], top, environment)
    make: Sequence[str | Path] = ["make", "--silent", f"-j{os.cpu_count() or 1}"]
    install = [f"DESTDIR={ready / 'install'}", "install"]
    run([*make, "all"], top, environment, BUILD_LIMIT)
    run([*make, *install], top, environment, BUILD_LIMIT)
    for extension in _extensions(top):
        run([*make, "-C", top / extension, "all"], top, environment, BUILD_LIMIT)
        run([*make, "-C", top / extension, *install], top, environment, BUILD_LIMIT)
    for kept in _KEPT:
        shutil.copytree(top / kept, ready / "source" / kept, symlinks=True, ignore=shutil.ignore_patterns("*.o"))
    return ready


def _extensions(top: Path) -> list[str]:
    """The directories of what the suites want to be installed beside the server, as their makefiles say."""
    found: set[str] = set()
    for suite in SUITES.values():
        text = (top / suite / "Makefile").read_text().replace("\\\n", " ")
        for words in re.findall(r"^EXTRA_INSTALL\s*\+?=(.*)$", text, re.MULTILINE):
            found.update(words.split())
    return sorted(found)

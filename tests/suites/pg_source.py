"""PostgreSQL's own suites, from the source package nearest to the installed server, built and ready to run."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.suites.archive import Archive, NotAvailable, by_distance, run, upstream
from tests.support.postgres import distribution

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "pg-regress"
#: What the test collate.linux.utf8 insists on, and skips itself without: {name: (definition, character map)}.
LOCALES = {f"{name}.utf8": (name, "UTF-8") for name in ("de_DE", "en_US", "sv_SE", "tr_TR")}
LOCALES["tr_TR"] = ("tr_TR", "ISO-8859-9")

# glibc's locale(1) lists only the machine's own locales, and initdb believes it.
_LIST_LOCALES = """\
#!/bin/sh
/usr/bin/locale "$@"
[ "$*" != -a ] || ls "${LOCPATH%%:*}"
"""


@dataclass(frozen=True)
class PgSuite:
    """A directory with ``regress``, ``isolation`` (tests), ``lib`` (C functions), ``locales`` and ``bin``."""

    directory: Path
    #: Of the source package.
    version: str
    #: Of the installed server; the same unless the source of that is not to be had.
    server_version: str

    @property
    def is_exact(self) -> bool:
        """Whether server and suites are the same release of PostgreSQL's."""
        return upstream(self.version) == upstream(self.server_version)

    @property
    def difference(self) -> str:
        """What to say of a failed test of suites that are not the server's; otherwise nothing."""
        if self.is_exact:
            return ""
        return (
            f"the server is {upstream(self.server_version)} and the suites are of {upstream(self.version)}: "
            "what changed between the two may fail"
        )

    def schedule(self, suite: str) -> Path:
        """The schedule that runs every test of ``regress`` or ``isolation``."""
        name = {"regress": "parallel_schedule", "isolation": "isolation_schedule"}[suite]
        return self.directory / suite / name

    def tests(self, suite: str) -> list[str]:
        """The names of all tests that the schedule runs."""
        lines = (line.split() for line in self.schedule(suite).read_text().splitlines())
        return [name for words in lines if words[:1] == ["test:"] for name in words[1:]]

    def environment(self) -> dict[str, str]:
        """What server and tests need, so that they find the locales."""
        return {
            "PATH": f"{self.directory / 'bin'}:/usr/bin:/bin",
            "LOCPATH": f"{self.directory / 'locales'}:/usr/lib/locale",
        }

    def copied_to(self, directory: Path) -> PgSuite:
        """A copy where every user can read it."""
        shutil.copytree(self.directory, directory, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
        return PgSuite(directory, self.version, self.server_version)


def prepare(version: str, cache: Path = CACHE, places: Sequence[str] = ()) -> PgSuite:
    """The suites for the installed server of a major version; downloaded and built when they are not cached.

    :param places: of the archive; see Archive
    :raises NotAvailable: neither cache nor archive has the suites of any release of that major version
    """
    server_version = version_of_server(version)
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / server_version).exists():
        cached = [path.name for path in cache.iterdir() if path.name[:1].isdecimal()]
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as directory:
            archive = Archive(Path(directory), places)
            chosen, source = nearest_source(archive, f"postgresql-{version}", server_version, cached)
            if source is not None:
                _build(archive, source, version, server_version).rename(cache / chosen)
        return PgSuite(cache / chosen, chosen, server_version)
    return PgSuite(cache / server_version, server_version, server_version)


def version_of_server(version: str) -> str:
    """The version of an installed server's package, as the server itself says it.

    :raises NotAvailable: there is no such server of the distribution
    """
    try:
        program = distribution(version).program("postgres")
    except AssertionError as error:
        raise NotAvailable(str(error)) from None
    said = run([program, "--version"], Path("/"))
    # postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
    found = re.search(r"\(PostgreSQL\) (\S+)(?: \(\w+ (\S+)\))?", said)
    if found is None:
        raise NotAvailable(f"{program} does not say its version: {said}")
    return found[2] or found[1]


def nearest_source(
    archive: Archive, package: str, wanted: str, cached: Sequence[str] = ()
) -> tuple[str, Path | None]:
    """The version nearest to the wanted one that can be had, and its upstream tar file, or None if it is cached.

    :raises NotAvailable: there is none of the same major version
    """
    problems = [archive.problem] if archive.problem else []
    for version in by_distance([*archive.source_versions(package), *cached], wanted):
        if version in cached:
            return version, None
        try:
            return version, archive.source(package, version)
        except NotAvailable as error:
            problems.append(str(error))
    raise NotAvailable("\n".join(problems) or f"the archive has no source package {package}")


def _build(archive: Archive, source: Path, major: str, server_version: str) -> Path:
    """Lay out everything that a run needs, and return where."""
    ready = archive.directory / "ready"
    for name in ("lib", "bin", "locales"):
        (ready / name).mkdir(parents=True)
    _extract_tests(source, ready)

    headers = archive.directory / "headers"
    # near to the server, not to the suites: it is the server that loads what is made with them
    archive.unpack(f"postgresql-server-dev-{major}", server_version, headers)
    include = headers / "usr" / "include" / "postgresql" / major / "server"
    library = ready / "lib" / "regress.so"
    code = ready / "regress" / "regress.c"
    run(["gcc", "-O2", "-fPIC", "-shared", f"-I{include}", code, "-o", library], headers)
    for name in ("refint.so", "autoinc.so"):
        shutil.copy(Path("/usr/lib/postgresql", major, "lib", name), ready / "lib")

    data = archive.directory / "locale-data"
    archive.unpack("locales", None, data)
    for locale, (definition, characters) in LOCALES.items():
        made_of = ["-i", definition, "-f", characters]
        made = ready / "locales" / locale
        run(["localedef", "--no-archive", *made_of, made], data, {"I18NPATH": f"{data}/usr/share/i18n"})
    wrapper = ready / "bin" / "locale"
    wrapper.write_text(_LIST_LOCALES)
    wrapper.chmod(0o755)
    return ready


def _extract_tests(upstream: Path, destination: Path) -> None:
    """Take the two suites out of the whole source."""
    with tarfile.open(upstream) as tar:
        for member in tar:
            parts = Path(member.name).parts[1:]
            content = tar.extractfile(member) if member.isfile() else None
            if content and parts[:2] == ("src", "test") and parts[2] in ("regress", "isolation"):
                path = destination.joinpath(*parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())

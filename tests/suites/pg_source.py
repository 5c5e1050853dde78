"""PostgreSQL's own suites, from the source package that matches the installed server, built and ready to run."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.suites.archive import Archive, NotAvailable, installed_source, run

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
    #: Of the installed server, as a source package; the same unless the archive has that no more.
    server_version: str

    @property
    def is_exact(self) -> bool:
        return self.version == self.server_version

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


def prepare(version: str, cache: Path = CACHE) -> PgSuite:
    """The suites for the installed server of a major version; downloaded and built when they are not cached.

    :raises NotAvailable: no network, or the archive does not have them
    """
    package, server_version = installed_source(f"postgresql-{version}")
    cache.mkdir(parents=True, exist_ok=True)
    exact = cache / server_version
    if not exact.exists():
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as directory:
            archive = Archive(Path(directory))
            chosen = _choose(archive, package, server_version)
            if not (cache / chosen).exists():
                ready = _build(archive, package, chosen, version)
                ready.rename(cache / chosen)
        return PgSuite(cache / chosen, chosen, server_version)
    return PgSuite(exact, server_version, server_version)


def _choose(archive: Archive, package: str, wanted: str) -> str:
    """The version that the server was built from, or the newest if the archive has that no more."""
    versions = archive.source_versions(package)
    if not versions:
        raise NotAvailable(f"the archive has no source package {package}")
    return wanted if wanted in versions else versions[0]


def _build(archive: Archive, package: str, version: str, major: str) -> Path:
    """Lays out everything that a run needs, and returns where."""
    ready = archive.directory / "ready"
    for name in ("lib", "bin", "locales"):
        (ready / name).mkdir(parents=True)
    _extract_tests(archive.source(package, version), ready)

    headers = archive.directory / "headers"
    archive.unpack(f"postgresql-server-dev-{major}", version, headers)
    include = headers / "usr" / "include" / "postgresql" / major / "server"
    library = ready / "lib" / "regress.so"
    source = ready / "regress" / "regress.c"
    run(["gcc", "-O2", "-fPIC", "-shared", f"-I{include}", source, "-o", library], headers)
    for name in ("refint.so", "autoinc.so"):
        shutil.copy(Path("/usr/lib/postgresql", major, "lib", name), ready / "lib")

    data = archive.directory / "locale-data"
    archive.unpack("locales", None, data)
    for locale, (definition, characters) in LOCALES.items():
        place = ready / "locales" / locale
        made_of = ["-i", definition, "-f", characters]
        run(["localedef", "--no-archive", *made_of, place], data, {"I18NPATH": f"{data}/usr/share/i18n"})
    wrapper = ready / "bin" / "locale"
    wrapper.write_text(_LIST_LOCALES)
    wrapper.chmod(0o755)
    return ready


def _extract_tests(upstream: Path, destination: Path) -> None:
    """Takes the two suites out of the whole source."""
    with tarfile.open(upstream) as tar:
        for member in tar:
            parts = Path(member.name).parts[1:]
            content = tar.extractfile(member) if member.isfile() else None
            if content and parts[:2] == ("src", "test") and parts[2] in ("regress", "isolation"):
                path = destination.joinpath(*parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())

"""The suites come from the nearest source of the server's major version that is really to be had."""

from __future__ import annotations

import hashlib
import http.server
import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.suites.archive import Archive, NotAvailable, by_distance, upstream
from tests.suites.pg_source import PgSuite, nearest_source, version_of_server

SOURCE = "postgresql-15"
HEADERS = "postgresql-server-dev-15"


class Pool:
    """An archive of the test's own, served by HTTP: its lists name more than it has."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        #: As a line of sources.list names it.
        self.place = f"[trusted=yes] http://127.0.0.1:{port}/ ./"
        self._sources = ""
        self._packages = ""

    def add_source(self, version: str, *, is_there: bool = True) -> None:
        stem = f"{SOURCE}_{version}"
        files = {f"{stem}.dsc": b"", f"{SOURCE}_{upstream(version)}.orig.tar.bz2": version.encode()}
        lines = "".join(f" {_sha256(content)} {len(content)} {name}\n" for name, content in files.items())
        self._sources += (
            f"Package: {SOURCE}\nFormat: 3.0 (quilt)\nBinary: {SOURCE}\nArchitecture: any\n"
            f"Version: {version}\nDirectory: .\nChecksums-Sha256:\n{lines}\n"
        )
        self._put(files if is_there else {})

    def add_headers(self, version: str, *, is_there: bool = True) -> None:
        tree = self.directory.parent / f"headers-{version}"
        include = tree / "usr" / "include" / "postgresql" / "15" / "server"
        include.mkdir(parents=True)
        (include / "version").write_text(version)
        (tree / "DEBIAN").mkdir()
        control = f"Package: {HEADERS}\nVersion: {version}\nArchitecture: all\nMaintainer: a <a@b.invalid>\n"
        (tree / "DEBIAN" / "control").write_text(f"{control}Description: headers\n")
        name = f"{HEADERS}_{version}_all.deb"
        made = tree.with_suffix(".deb")
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, made], check=True, capture_output=True)
        content = made.read_bytes()
        self._packages += (
            f"{control}Filename: ./{name}\nSize: {len(content)}\nSHA256: {_sha256(content)}\n"
            "Description: headers\n\n"
        )
        self._put({name: content} if is_there else {})

    def publish(self) -> None:
        lists = {"Sources": self._sources.encode(), "Packages": self._packages.encode()}
        lines = "".join(f" {_sha256(content)} {len(content)} {name}\n" for name, content in lists.items())
        release = f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n{lines}"
        self._put({**lists, "Release": release.encode()})

    def _put(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            (self.directory / name).write_bytes(content)


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what apt asks for belongs to no test's output."""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    # a proxy would not find this machine's own archive
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    directory = tmp_path / "pool"
    directory.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=directory))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Pool(directory, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archive_of(pool: Pool, directory: Path) -> Archive:
    pool.publish()
    directory.mkdir()
    archive = Archive(directory, [pool.place])
    assert archive.problem == ""
    return archive


@pytest.mark.parametrize(
    ("server", "listed", "gone", "chosen"),
    [
        ("15.20-0+deb12u1", ["15.18-0+deb12u1", "15.20-0+deb12u1"], [], "15.20-0+deb12u1"),
        # a list that names what the pool has no more, and one that never named it
        ("15.20-0+deb12u1", ["15.18-0+deb12u1", "15.20-0+deb12u1"], ["15.20-0+deb12u1"], "15.18-0+deb12u1"),
        ("15.20-0+deb12u1", ["15.16-0+deb12u1", "15.18-0+deb12u1"], [], "15.18-0+deb12u1"),
        # a server that is older than all that is left
        ("15.9-0+deb12u1", ["15.18-0+deb12u1", "15.20-0+deb12u1"], [], "15.18-0+deb12u1"),
        ("15.9-0+deb12u1", ["15.18-0+deb12u1", "15.20-0+deb12u1"], ["15.18-0+deb12u1"], "15.20-0+deb12u1"),
        # another packager's build of the same release
        ("15.18-1.pgdg120+1", ["15.18-0+deb12u1", "15.19-0+deb12u1"], [], "15.18-0+deb12u1"),
    ],
)
def test_the_nearest_source_that_can_be_downloaded_is_taken(
    server: str, listed: list[str], gone: list[str], chosen: str, pool: Pool, tmp_path: Path
) -> None:
    for version in listed:
        pool.add_source(version, is_there=version not in gone)
    version, source = nearest_source(archive_of(pool, tmp_path / "work"), SOURCE, server)
    assert version == chosen
    assert source is not None
    assert source.read_text() == chosen


def test_it_fails_only_if_there_is_no_source_of_the_major_version(pool: Pool, tmp_path: Path) -> None:
    pool.add_source("15.18-0+deb12u1", is_there=False)
    pool.add_source("15.20-0+deb12u1", is_there=False)
    pool.add_source("16.3-1")
    archive = archive_of(pool, tmp_path / "work")
    with pytest.raises(NotAvailable, match=r"(?s)15\.20.*404.*15\.18.*404"):
        nearest_source(archive, SOURCE, "15.20-0+deb12u1")
    cached = ["15.6-0+deb12u1", "15.7-0+deb12u1", "16.3-1"]
    assert nearest_source(archive, SOURCE, "15.20-0+deb12u1", cached) == ("15.7-0+deb12u1", None)


def test_what_was_built_before_serves_when_the_archive_cannot_be_reached(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    archive = Archive(tmp_path / "work", [pool.place])  # it has no lists yet
    assert "404" in archive.problem
    with pytest.raises(NotAvailable, match="404"):
        nearest_source(archive, SOURCE, "15.20-0+deb12u1")
    assert nearest_source(archive, SOURCE, "15.20-0+deb12u1", ["15.18-0+deb12u1"]) == ("15.18-0+deb12u1", None)


@pytest.mark.parametrize(("gone", "chosen"), [([], "15.20-0+deb12u1"), (["15.20-0+deb12u1"], "15.18-0+deb12u1")])
def test_the_nearest_headers_that_can_be_downloaded_are_taken(
    gone: list[str], chosen: str, pool: Pool, tmp_path: Path
) -> None:
    for version in ("15.18-0+deb12u1", "15.20-0+deb12u1"):
        pool.add_headers(version, is_there=version not in gone)
    archive = archive_of(pool, tmp_path / "work")
    assert archive.unpack(HEADERS, "15.20-0+deb12u1", tmp_path / "unpacked") == chosen
    include = tmp_path / "unpacked" / "usr" / "include" / "postgresql" / "15" / "server"
    assert (include / "version").read_text() == chosen
    with pytest.raises(NotAvailable, match="no package"):
        archive.unpack("postgresql-server-dev-14", "14.1-1", tmp_path / "unpacked")


def test_nearness_counts_releases_and_prefers_the_older() -> None:
    versions = ["15.2-1", "15.20-1", "15.18-1", "16.19-1", "15.18-0+deb12u1", "15.100-1"]
    near = ["15.18-1", "15.18-0+deb12u1", "15.20-1", "15.2-1", "15.100-1"]
    assert by_distance(versions, "15.18-1") == near
    assert by_distance(["15.20-1", "15.18-1"], "15.19-1") == ["15.18-1", "15.20-1"]
    assert by_distance(["14.1-1"], "15.19-1") == []


def test_suites_of_another_release_say_so_and_other_builds_of_the_same_do_not() -> None:
    def suite(version: str, server: str) -> PgSuite:
        return PgSuite(Path("/"), version, server)

    assert suite("15.18-0+deb12u1", "15.18-1.pgdg120+1").difference == ""
    assert re.search(r"15\.20.*15\.18", suite("15.18-0+deb12u1", "15.20-0+deb12u1").difference)


def test_the_server_itself_says_which_version_it_is() -> None:
    assert upstream(version_of_server("15")).startswith("15.")
    with pytest.raises(NotAvailable):
        version_of_server("9")

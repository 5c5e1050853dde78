"""What a crash during CREATE or DROP DATABASE leaves is told from damage. Covers tdefs/offline/abandoned.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

DAMAGED = 42
NAMES = ("kept", "halved", "dropped")


@dataclass
class Databases:
    """A cluster at rest on a mounted volume; ``of`` has the databases' directories in the volume, by name."""

    server: Server
    volume: Volume
    of: dict[str, str]

    def lose(self, name: str, *files: str) -> None:
        """Removes files of a database."""
        for file in files:
            (self.volume.mountpoint / self.of[name] / file).unlink()

    def verify(self) -> tuple[dict[str, str], dict[str, str], int]:
        """What ``tdefs verify`` finds at rest, what it notes, and its exit code."""
        self.volume.umount()
        done = self.volume.tdefs("verify", self.volume.backing, "--json", *self.volume.unlock, check=False)
        self.volume.mount()
        report = json.loads(done.stdout)
        found = {finding["path"]: finding["hint"] for finding in report["findings"]}
        return found, {note["path"]: note["text"] for note in report["notes"]}, done.returncode


@pytest.fixture
def databases(workspace: Workspace, version: str) -> Iterator[Databases]:
    """A database that is there, one whose DROP DATABASE was begun, and the directory of one that is dropped."""
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        volume = workspace.volume("abandoned")
        volume.init()
        volume.mount(owner=workspace.account)
        server = workspace.server(version, volume.mountpoint)
        server.initdb()
        server.start()
        for name in NAMES:
            server.psql(f"CREATE DATABASE {name} STRATEGY file_copy")
        listed = server.psql("SELECT datname, oid FROM pg_database WHERE oid >= 16384").split()
        of = {name: f"base/{oid}" for name, oid in (line.split("|") for line in listed)}
        server.psql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'halved'")
        dropped, copy = volume.mountpoint / of["dropped"], volume.mountpoint.parent / "dropped"
        shutil.copytree(dropped, copy)
        server.psql("DROP DATABASE dropped")
        server.stop()
        shutil.copytree(copy, dropped)
        for path in (dropped, *dropped.iterdir()):
            workspace.account.own(path)
        shutil.rmtree(copy)
        yield Databases(server, volume, of)
    finally:
        workspace.release(volumes, servers)


def test_what_a_crash_left_is_a_note_and_the_rest_is_damage(databases: Databases) -> None:
    found, notes, code = databases.verify()
    assert (found, notes, code) == ({}, {}, 0)

    for name in ("halved", "dropped"):
        databases.lose(name, "PG_VERSION", "1259")
    torn = databases.volume.mountpoint / databases.of["dropped"] / "1249"
    torn.write_bytes(torn.read_bytes()[:8192] + bytes(512) + torn.read_bytes()[8704:])
    found, notes, code = databases.verify()
    assert (found, code) == ({}, 0)
    assert sorted(notes) == sorted(databases.of[name] for name in ("halved", "dropped"))
    assert notes[databases.of["halved"]].startswith("2 files are missing or damaged, which is no loss")
    assert "interrupted DROP DATABASE" in notes[databases.of["halved"]]
    assert notes[databases.of["dropped"]].startswith("3 files are missing or damaged, which is no loss")
    assert "no database has this number" in notes[databases.of["dropped"]]

    databases.lose("kept", "PG_VERSION")
    found, notes, code = databases.verify()
    assert (list(found), code) == ([f"{databases.of['kept']}/PG_VERSION"], DAMAGED)
    assert len(notes) == 2

    header = f"{databases.of['dropped']}/2619"
    with Path(databases.volume.data, header).open("r+b") as file:
        file.seek(40)
        file.write(bytes(8))
    found, _, _ = databases.verify()
    assert header in found, "no crash leaves a damaged header"


def test_in_doubt_what_is_missing_counts_as_damage(databases: Databases) -> None:
    databases.lose("dropped", "PG_VERSION")
    databases.lose("halved", "PG_VERSION")
    missing = f"{databases.of['dropped']}/PG_VERSION"
    databases.server.start()
    databases.server.stop("immediate")
    found, notes, code = databases.verify()
    assert (list(found), code) == ([missing], DAMAGED)
    assert databases.of["halved"] in notes, "that one is certain"
    assert "start it, stop it, and verify again" in found[missing]

    databases.server.start()
    databases.server.stop()
    assert databases.verify()[0] == {}
    relation_map = databases.volume.mountpoint / "global" / "pg_filenode.map"
    relation_map.write_bytes(bytes(len(relation_map.read_bytes())))
    found, _, _ = databases.verify()
    assert sorted(found) == sorted([f"{databases.of['halved']}/PG_VERSION", missing, "global/pg_filenode.map"])

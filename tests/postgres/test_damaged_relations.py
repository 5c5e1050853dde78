"""Damage to single backing files under a real server: an error that names its cause, and the rest is served."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

TABLES = ("flipped", "cut", "swapped_1", "swapped_2", "alien", "healthy")


@dataclass(frozen=True)
class Damaged:
    server: Server
    volume: Volume
    paths: dict[str, str]

    def failure(self, table: str) -> str:
        """What the server says to a query."""
        done = self.server.run("psql", "-X", "-c", f"SELECT count(*) FROM {table}", "postgres", check=False)
        assert done.returncode != 0, f"{table} was read: {done.stdout}"
        return done.stderr


@pytest.fixture(scope="module")
def damaged(workspace: Workspace) -> Iterator[Damaged]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        volume, other = workspace.volume("damaged"), workspace.volume("other")
        for each in (volume, other):
            each.init()
            each.mount(owner=workspace.account)
        server = workspace.server("15", volume.mountpoint)
        server.initdb()
        server.start()
        for table in TABLES:
            server.psql(f"CREATE TABLE {table} AS SELECT i, repeat('x', 100) t FROM generate_series(1, 5000) i")
        paths = {table: server.psql(f"SELECT pg_relation_filepath('{table}')") for table in TABLES}
        server.stop()
        foreign = other.mountpoint / paths["alien"]
        foreign.parent.mkdir(parents=True)
        shutil.copyfile(volume.mountpoint / paths["alien"], foreign)
        for each in (volume, other):
            each.umount()

        backing = {table: volume.data / path for table, path in paths.items()}
        with backing["flipped"].open("r+b") as file:
            file.seek(40)
            byte = file.read(1)[0]
            file.seek(40)
            file.write(bytes([byte ^ 4]))
        with backing["cut"].open("r+b") as file:
            file.truncate(100)
        exchange(backing["swapped_1"], backing["swapped_2"])
        shutil.copyfile(other.data / paths["alien"], backing["alien"])

        # what each file itself tells; that the manifest refuses them before is for tests/fs/test_tampering.py
        volume.mount(*volume.reporting)
        server.start()
        yield Damaged(server, volume, paths)
        server.stop()
        volume.umount()
    finally:
        workspace.release(volumes, servers)


def exchange(one: Path, two: Path) -> None:
    content = one.read_bytes(), two.read_bytes()
    two.write_bytes(content[0])
    one.write_bytes(content[1])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("flipped", "the header is damaged: its checksum does not match"),
        ("cut", "the file is cut inside its header page"),
        ("swapped_1", "the header belongs to relation file"),
        ("swapped_2", "the header belongs to relation file"),
        ("alien", "the file belongs to another volume"),
    ],
)
def test_a_damaged_relation_is_an_error_whose_cause_the_log_names(damaged: Damaged, table: str, said: str) -> None:
    path = damaged.paths[table]
    assert f'could not open file "{path}": Input/output error' in damaged.failure(table)
    assert f"{path}: {said}" in damaged.volume.log.read_text()


def test_the_rest_of_the_cluster_is_served(damaged: Damaged) -> None:
    for table in TABLES[:-1]:
        damaged.failure(table)
    assert damaged.server.psql("SELECT count(*) FROM healthy") == "5000"
    damaged.server.psql("INSERT INTO healthy VALUES (0, 'still written'); CHECKPOINT")
    assert damaged.server.psql("SELECT count(*) FROM healthy") == "5001"


def test_verify_names_every_damaged_file(damaged: Damaged) -> None:
    done = damaged.volume.tdefs(
        "verify",
        damaged.volume.backing,
        *damaged.volume.unlock,
        "--keystore",
        damaged.volume.keystore,
        check=False,
    )
    for table in ("cut", "swapped_1", "swapped_2", "alien"):
        assert f"{damaged.paths[table]}: " in done.stdout
    assert damaged.paths["healthy"] not in done.stdout

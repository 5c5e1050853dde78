"""A bit that flips in a tablespace's page is found, though the cluster is in another volume; missing WAL, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tdefs.errors import Exit
from tests.support.volume import Volume
from tests.support.workspace import Workspace


@dataclass(frozen=True)
class Parts:
    """The volumes of one cluster that was shut down; the table's second page in the tablespace has a wrong bit."""

    data: Volume
    tablespace: Volume
    wal: Volume
    table: str

    def verified(self, volume: Volume, *options: str | Path) -> tuple[int, Any]:
        done = volume.tdefs(
            *("verify", volume.backing, "--keystore", volume.keystore, *volume.unlock, "--json", *options),
            check=False,
        )
        return done.returncode, json.loads(done.stdout)

    def assert_found(self, answer: tuple[int, Any]) -> None:
        code, found = answer
        assert code == Exit.VERIFY_FOUND_DAMAGE
        assert [(one["path"], one["blocks"]) for one in found["findings"]] == [(self.table, [1])]
        assert found["unchecked_pages"] == 0


@pytest.fixture(scope="module")
def parts(workspace: Workspace) -> Iterator[Parts]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        data, tablespace, wal = (workspace.volume(name) for name in ("data", "space", "wal"))
        for volume in (data, tablespace, wal):
            volume.init()
            volume.mount(owner=workspace.account)
        server = workspace.server("15", data.mountpoint)
        server.initdb("-X", str(wal.mountpoint))
        server.start()
        server.psql(f"CREATE TABLESPACE space LOCATION '{tablespace.mountpoint}'")
        server.psql(
            "CREATE TABLE t TABLESPACE space AS SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i"
        )
        path = server.psql("SELECT pg_relation_filepath('t')")
        server.stop()
        tablespace.umount()
        table = path.split("/", 2)[2]
        with (tablespace.data / table).open("r+b") as file:
            file.seek(8192 + 8192 + 4321)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        yield Parts(data, tablespace, wal, table)
    finally:
        workspace.release(volumes, servers)


def test_cluster_is_found_on_its_mount(parts: Parts) -> None:
    answer = parts.verified(parts.tablespace)
    parts.assert_found(answer)
    assert str(parts.data.mountpoint) in answer[1]["notes"][0]["text"]
    code, found = parts.verified(parts.wal)
    assert (code, found["unchecked"]) == (Exit.VERIFY_FOUND_DAMAGE if found["findings"] else Exit.OK, [])
    assert found["findings"] == []
    assert found["wal_files"] > 0


def test_data_directory_on_a_mount_can_be_named(parts: Parts) -> None:
    parts.assert_found(parts.verified(parts.tablespace, "--pgdata", parts.data.mountpoint))


def test_without_the_cluster_the_pages_are_said_to_be_unchecked(parts: Parts, tmp_path: Path) -> None:
    parts.wal.umount()
    parts.data.umount()
    code, found = parts.verified(parts.tablespace)
    assert code == Exit.VERIFY_INCOMPLETE
    assert (found["findings"], found["pages"]) == ([], 0)
    assert found["unchecked_pages"] >= 2
    assert parts.verified(parts.wal)[0] == Exit.VERIFY_INCOMPLETE
    # by the configuration, which knows how to unlock it
    config = tmp_path / "tdefs.yaml"
    config.write_text(
        f'version: 1\nvolumes:\n  {parts.data.backing}:\n    key_command: "{parts.data.unlock[1]}"\n'
        f"    keystore: {parts.data.keystore}\n"
    )
    parts.assert_found(parts.verified(parts.tablespace, "--config", config))
    assert parts.verified(parts.wal, "--config", config)[0] == Exit.OK
    parts.assert_found(parts.verified(parts.tablespace, "--config", config, "--pgdata", parts.data.backing))
    (segment,) = list(parts.wal.data.glob("0000*"))[:1]
    segment.unlink()
    code, found = parts.verified(parts.wal, "--config", config)
    assert code == Exit.VERIFY_FOUND_DAMAGE
    assert {(one["path"], one["error"]) for one in found["findings"]} == {
        (segment.name, "the WAL segment is missing"),
        (segment.name, "not as the last unmount left it: removed"),
    }

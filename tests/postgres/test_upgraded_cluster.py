"""What pg_upgrade leaves of the old cluster, whose files the new one has taken, is not taken for damage."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.volume import Volume
from tests.support.workspace import Workspace


@pytest.mark.parametrize("mode", ["link", "swap"])
def test_verify_of_an_upgraded_cluster_finds_nothing_and_restores_nothing(scratch: Workspace, mode: str) -> None:
    volume = scratch.volume("upgraded")
    volume.init()
    volume.mount(owner=scratch.account)
    servers = []
    for version in ("15", "18"):
        pgdata = volume.mountpoint / version
        pgdata.mkdir(mode=0o700)
        scratch.account.own(pgdata)
        servers.append(scratch.server(version, pgdata))
        # pg_upgrade connects as the user who installed both
        servers[-1].initdb("--username=postgres", "--no-sync")
    old, new = servers
    old.start()
    old.psql("CREATE TABLE t AS SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i")
    old.stop()
    work = scratch.data_directory("upgrade")
    done = subprocess.run(
        scratch.account.command(
            *(new.installation.program("pg_upgrade"), f"--{mode}", "--no-sync", "--username=postgres"),
            *("-b", old.installation.bindir, "-B", new.installation.bindir, "-d", old.pgdata, "-D", new.pgdata),
            *("-s", old.socket_directory),
        ),
        env={**scratch.account.environment(), "PGCTLTIMEOUT": "300"},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    new.start()
    assert new.psql("SELECT count(*) FROM t") == "2000"
    new.stop()
    volume.umount()
    assert_sound(volume, Path("15/global/pg_control.old"))


def assert_sound(volume: Volume, retired: Path) -> None:
    place = (volume.backing, "--keystore", volume.keystore)
    done = volume.tdefs("verify", *place, *volume.unlock, "--json", check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["findings"], found["unchecked"]) == (Exit.OK, [], [])
    assert [one["path"] for one in found["notes"]] == [str(retired)]

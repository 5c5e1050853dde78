"""A real server reads the virtual files from SQL, and neither it nor its tools see them otherwise."""

from __future__ import annotations

import json
import os

import pytest

from tests.support.workspace import Workspace


@pytest.mark.slow
def test_a_superuser_reads_the_status_from_sql_and_no_tool_of_the_server_minds(scratch: Workspace) -> None:
    volume = scratch.volume("virtual-sql")
    volume.init()
    volume.mount(owner=scratch.account)
    server = scratch.server("15", volume.mountpoint)
    server.initdb("--no-sync")  # which wants an empty directory of mode 0700 or 0750
    server.start()
    found = json.loads(server.psql("SELECT pg_read_file('.tdefs/status.json')"))
    assert (found["mountpoint"], found["daemon_answers"]) == (str(volume.mountpoint), True)
    assert found["files"]["encrypted"] > 900
    assert found["bytes"]["write"] > 1 << 20
    assert server.psql("SELECT count(*) FROM pg_ls_dir('.') AS name WHERE name = '.tdefs'") == "0"
    assert server.psql("SELECT pg_read_file('.tdefs/status.json')::json #>> '{pid}'") == str(volume.daemons[0])
    server.psql("CREATE ROLE nobody_special")
    sql = "SET ROLE nobody_special; SELECT pg_read_file('.tdefs/status.json')"
    refused = server.run("psql", "-X", "-c", sql, "postgres", check=False)
    assert "permission denied" in refused.stderr
    backup = scratch.data_directory("virtual-sql-copy")
    server.run("pg_basebackup", "-D", backup, "-X", "none", "--checkpoint=fast", "--no-sync")
    assert "PG_VERSION" in os.listdir(backup)
    assert ".tdefs" not in os.listdir(backup)
    server.stop()
    server.run("pg_checksums", "--check", "-D", server.pgdata)
    volume.umount()

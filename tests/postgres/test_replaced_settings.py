"""Servers replace files under the eyes of their own processes: none of them is ever missing for who opens it."""

from __future__ import annotations

import re

from tests.support.volume import Volume
from tests.support.workspace import Workspace

SECONDS = 5
SCRIPT = """\
\\set number random(100, 10000)
ALTER SYSTEM SET log_min_duration_statement = :number;
SELECT pg_reload_conf();
"""


def test_settings_that_eight_sessions_change_and_reload_are_never_missing(
    scratch: Workspace, volume: Volume
) -> None:
    volume.mount(owner=scratch.account)
    server = scratch.server("15", volume.mountpoint)
    server.initdb("--no-sync")
    server.start()
    server.psql("ALTER SYSTEM SET work_mem = '7MB'")
    script = server.log.parent / "alter.sql"
    script.write_text(SCRIPT)
    clients = server.popen("pgbench", "-n", "-T", str(SECONDS), "-c", "8", "-j", "2", "-f", script, "postgres")
    said = clients.communicate(timeout=SECONDS + 120)[0]
    assert clients.returncode == 0, said
    done = re.search(r"number of transactions actually processed: (\d+)", said)
    assert done, said
    assert int(done[1]) > 0
    log = server.log.read_text()
    assert "received SIGHUP, reloading configuration files" in log
    missed = [
        line for line in log.splitlines() if re.search(r"skipping missing|removed from|could not open", line)
    ]
    assert missed == []
    assert server.psql("SHOW work_mem") == "7MB"
    server.stop()
    volume.umount()

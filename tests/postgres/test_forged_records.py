"""What lies beside the data in a backing directory is forged while nothing is mounted, and PostgreSQL runs on it.

Who does that has no key. Covers the description of a volume and the record of its session.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.support.pristine import Pristine, cluster_at_rest
from tests.support.scan import files_with
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow

SECRET = "4000 0000 0000 0002"


@pytest.fixture(scope="module")
def made(workspace: Workspace, version: str) -> Iterator[tuple[Volume, Server, Pristine]]:
    settings = {"wal_recycle": "off"}  # new segments are new files
    with cluster_at_rest(
        workspace, version, "main", settings, lambda server: server.psql("ALTER SYSTEM SET work_mem = '7MB'")
    ) as made:
        yield made


@pytest.fixture
def stopped(made: tuple[Volume, Server, Pristine]) -> Iterator[tuple[Volume, Server]]:
    """A cluster on a volume where everything is encrypted; stopped, and unmounted."""
    volume, server, pristine = made
    yield volume, server
    pristine.restore()


def test_a_forged_description_brings_no_wal_into_the_clear(
    stopped: tuple[Volume, Server], workspace: Workspace
) -> None:
    volume, server = stopped
    policy = volume.root / "attack.yaml"
    policy.write_text("version: 1\nkinds: {wal: plain}\n")
    description = volume.backing / ".tdefs" / "volume.json"
    fields = json.loads(description.read_text())
    description.write_text(json.dumps(fields | {"plain_files": True, "policy": str(policy)}))
    volume.mount(owner=workspace.account)
    server.start()
    for _ in range(3):
        server.psql(f"SELECT pg_logical_emit_message(true, 'tdefs', '{SECRET}') FROM generate_series(1, 200000)")
        server.psql("SELECT pg_switch_wal()")
    assert server.psql("SHOW work_mem") == "7MB"
    os.sync()
    seen = files_with(server.pgdata, [SECRET])[SECRET]
    assert any(path.startswith("pg_wal/") for path in seen), "the search would not have found it"
    assert files_with(volume.backing, [SECRET]) == {SECRET: set()}
    server.stop()
    volume.umount()


@pytest.mark.parametrize("session", ["invented", "from the middle of the last session"])
def test_a_forged_end_of_a_session_empties_no_settings(
    stopped: tuple[Volume, Server], workspace: Workspace, session: str
) -> None:
    """A wiped header would be taken for one that a crash has lost, and the server would start without them."""
    volume, server = stopped
    record = volume.backing / ".tdefs" / "session.json"
    volume.mount(owner=workspace.account)
    middle = record.read_bytes()
    volume.umount()
    if session == "invented":
        fields = json.loads(record.read_bytes())
        middle = json.dumps(fields | {"clean": False}).encode().ljust(8192)
    record.write_bytes(middle)
    settings = volume.data / "main" / "postgresql.conf"
    stored = bytes(8192) + settings.read_bytes()[8192:]
    settings.write_bytes(stored)
    done = volume.tdefs(
        "mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.log, check=False
    )
    assert done.returncode == 0
    assert "the record of the last session is not believed" in done.stderr
    assert "the record of the last session is not believed" in volume.log_tail()
    with pytest.raises(AssertionError, match=r"postgresql\.conf"):
        server.start(seconds=20)
    assert settings.read_bytes() == stored
    volume.umount()


def test_after_a_crash_no_file_in_the_clear_opens_a_cluster(scratch: Workspace, version: str) -> None:
    """Where a policy leaves something in the clear, a plain file is a valid one: but only where it was one."""
    volume = scratch.volume("some plain")
    volume.init(policy="version: 1\nkinds: {log: plain}\n")
    volume.mount(owner=scratch.account)
    server = scratch.server(version, volume.mountpoint / "main")
    server.initdb()
    volume.umount()
    volume.mount(owner=scratch.account)
    hba, settings = server.pgdata / "pg_hba.conf", server.pgdata / "postgresql.auto.conf"
    hba.write_text("local all all reject\n")  # so that the manifest does not bind it any more
    settings.write_text("work_mem = '7MB'\n")
    volume.kill()
    for stored, text in (
        (volume.data / "main" / "pg_hba.conf", "local all all trust\n"),
        (volume.data / "main" / "postgresql.auto.conf", "local_preload_libraries = 'evil'\n"),
    ):
        stored.write_text(text)
    volume.mount(owner=scratch.account)
    for path in (hba, settings):
        with pytest.raises(OSError, match="Input/output error"):
            path.read_text()
    with pytest.raises(AssertionError, match=r"postgresql\.auto\.conf"):
        server.start(seconds=20)
    assert "it is in the clear where the policy encrypts" in volume.log_tail()
    volume.umount()
    assert (
        "added" in volume.tdefs("accept", "--list", "--volume", volume.backing, *volume.unlock, check=False).stdout
    ), "a session that refused it makes it none the better"

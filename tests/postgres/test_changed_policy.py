"""A real server goes on under a changed policy, with WAL segments that it made beforehand under the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.workspace import Workspace

PLAIN_WAL = "version: 1\nkinds: {wal: plain, slru: plain}\n"
EVERYTHING = "version: 1\n"
MAGIC = b"\x89TDEFS"
_MESSAGES = "SELECT count(pg_logical_emit_message(false, 'canary', repeat('x', 1000))) FROM generate_series(1, %d)"


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "pg_wal").iterdir() if len(path.name) == 24)


def _make_zero_segment(server: Server) -> list[str]:
    """Has the server make a segment beforehand; returns the names of those that are all zero."""
    server.psql(_MESSAGES % 6000)  # as much as initdb has left ahead
    for _ in range(20):
        server.psql(_MESSAGES % 100)
        server.psql("CHECKPOINT")
        zeros = [path.name for path in _segments(server.pgdata) if not any(path.read_bytes())]
        if zeros:
            return zeros
    pytest.fail("the server has made no WAL segment beforehand")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "crash"),
    [(PLAIN_WAL, EVERYTHING, False), (PLAIN_WAL, EVERYTHING, True), (EVERYTHING, PLAIN_WAL, True)],
    ids=["encrypted from now on", "encrypted after a crash", "plain after a crash"],
)
def test_a_server_starts_writes_and_restarts_under_a_changed_policy(
    scratch: Workspace, before: str, after: str, crash: bool
) -> None:
    volume = scratch.volume("changed")
    volume.init(policy=before)
    volume.mount(owner=scratch.account)
    server = scratch.server("15", volume.mountpoint)
    server.initdb("--no-sync", "--wal-segsize=1")
    server.configure({"wal_recycle": "off"})
    server.start()
    server.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i")
    zeros = _make_zero_segment(server)
    if crash:
        volume.kill()
        server.discard()
    else:
        server.stop()
        volume.umount()
    volume.accept(policy=after)
    volume.mount()
    if crash:
        server.pgdata.joinpath("postmaster.pid").unlink(missing_ok=True)
    else:
        assert volume.tdefs("ls", volume.backing).returncode == 0
        for name in zeros:
            assert volume.cat(f"pg_wal/{name}") == bytes(1 << 20)
    server.start()
    assert server.psql("SELECT count(*), sum(i) FROM t") == "1000|500500"
    for _ in range(4):
        server.psql(_MESSAGES % 600)
        server.psql("INSERT INTO t SELECT generate_series(1, 1000)")
    server.stop()
    volume.umount()
    volume.tdefs("verify", volume.backing, *volume.unlock)
    if after == EVERYTHING:
        written = [path for path in _segments(volume.data) if b"x" * 500 in path.read_bytes()]
        assert not {path.name for path in written} & set(zeros), "what was zero is written in clear"
        assert any(path.read_bytes().startswith(MAGIC) for path in _segments(volume.data))
    volume.accept(policy=before)
    volume.mount()
    server.start()
    assert server.psql("SELECT count(*) FROM t") == "5000"
    server.psql("INSERT INTO t VALUES (0)")
    server.stop()
    server.start()
    assert server.psql("SELECT count(*) FROM t") == "5001"
    server.stop()
    complaints = [line for line in volume.complaints() if "leaves the kind" not in line]
    assert all("WARNING" in line for line in complaints), complaints

"""Memory and time do not leak: after a long mixed load everything returns to where it was.

A run in CI takes under a minute. ``TDEFS_CRASH_ROUNDS=50`` is the campaign: twenty minutes, and at least 50,000
relation files.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tdefs.fuse.loop import WORKERS
from tests.crash.conftest import Dice
from tests.crash.gauges import Gauges, differences, table
from tests.support.caches import drop_caches
from tests.support.children import needs_root
from tests.support.processes import wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

LOAD: Final = Path(__file__).parent / "load"
SETTINGS: Final = {
    "max_wal_size": "24MB",
    "min_wal_size": "6MB",
    "shared_buffers": "32MB",
    "checkpoint_timeout": "30s",
    "autovacuum_naptime": "5s",
    "synchronous_commit": "off",
}
#: At least so many files are made, and for at least so long. A campaign multiplies the last two.
FEWEST_FILES: Final = 3000
FILES: Final = 1000
SECONDS: Final = 24
TURN_SECONDS: Final = 3
QUARTERS: Final = 4

#: A buffer of 1 MiB for each worker, and what the daemon needs besides, with room for the allocator's whims.
MOST_MEMORY_KB: Final = WORKERS * 1032 + 110_000
#: As many files as the daemon keeps open between connections.
IDLE: Final = 512


@pytest.fixture
def server(scratch: Workspace, volume: Volume) -> Server:
    """A server on a mount; its WAL segments are small, so that many come and go."""
    volume.mount(owner=scratch.account)
    fill_buffers(volume)
    server = scratch.server("15", volume.mountpoint)
    server.initdb("--wal-segsize=1")
    server.configure(SETTINGS)
    server.start()
    server.psql("CREATE TABLE visits AS SELECT i AS id, 0 AS number FROM generate_series(1, 10) i")
    return server


def fill_buffers(volume: Volume) -> None:
    """Has every worker of the daemon use all of its buffer, so that memory which grows afterwards is a leak.

    Each write is one request of 1 MiB that is waited for, since a file that looks like WAL is written directly.
    """
    directory = volume.mountpoint / "pg_wal"
    directory.mkdir()

    def write(number: int) -> None:
        fd = os.open(directory / f"{number:024X}", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
        for offset in range(4):
            os.pwrite(fd, b"1" * (1 << 20), offset << 20)
        os.close(fd)

    with ThreadPoolExecutor(2 * WORKERS) as pool:
        list(pool.map(write, range(1, 2 * WORKERS)))
    shutil.rmtree(directory)


def work(server: Server, seconds: int) -> int:
    """Connections, DDL, databases and WAL for some seconds; returns how many connections there were."""
    common = ("-n", "-T", str(seconds))
    visits = server.popen("pgbench", *common, "-C", "-c", "2", "-f", LOAD / "visit.sql", "postgres")
    churn = server.popen("pgbench", *common, "-c", "2", "-f", LOAD / "churn.sql", "postgres")
    server.psql("CREATE DATABASE guest STRATEGY file_copy")
    server.psql("CREATE TABLE a AS SELECT 1", "guest")
    server.psql("SELECT pg_switch_wal()")
    server.psql("DROP DATABASE guest")
    server.psql("CHECKPOINT")
    said = [process.communicate(timeout=seconds + 120)[0] for process in (visits, churn)]
    for process, text in zip((visits, churn), said, strict=True):
        assert process.returncode == 0, text
    done = re.search(r"number of transactions actually processed: (\d+)", said[0])
    assert done, said[0]
    return int(done[1])


def at_rest(server: Server, volume: Volume, *, forget: bool = False) -> Gauges:
    """A reading once nothing happens any more.

    :param forget: the kernel drops every inode that nobody uses, and tells the daemon
    """
    # dropped files lose their last name at the checkpoint after
    for _ in range(2):
        server.psql("CHECKPOINT")
    if forget:
        for _ in range(2):
            drop_caches(2)
    time.sleep(1)
    return Gauges.read(volume)


def orphans(server: Server, volume: Volume) -> list[str]:
    """Relation files that belong to no relation of any database."""
    found = []
    databases = server.psql("SELECT oid || '|' || datname FROM pg_database WHERE datallowconn").splitlines()
    for number, name in (line.split("|") for line in databases):
        paths = server.psql("SELECT pg_relation_filepath(oid) FROM pg_class WHERE relfilenode <> 0 OR relisshared "
                            "OR relkind IN ('r', 'i', 't')", name).splitlines()  # fmt: skip
        numbers = {path.rpartition("/")[2] for path in paths}
        for file in (volume.data / "base" / number).iterdir():
            if (match := re.match(r"(?:t\d+_)?(\d+)", file.name)) and match[1] not in numbers:
                found.append(f"{name}: {file.name}")
    return found


@needs_root
@pytest.mark.slow(seconds=60)
def test_a_soak_leaves_everything_where_it_was(server: Server, volume: Volume, dice: Dice) -> None:
    work(server, TURN_SECONDS)  # what is used for the first time is no leak
    readings = [("before", at_rest(server, volume)), ("forgotten", at_rest(server, volume, forget=True))]
    began, first = time.monotonic(), readings[0][1].relation_files_made
    files, connections = max(FEWEST_FILES, dice.rounds(FILES)), 0
    for quarter in range(1, QUARTERS + 1):
        share = quarter / QUARTERS
        while (
            time.monotonic() - began < dice.rounds(SECONDS) * share
            or volume.status()["requests"]["create"] - first < files * share
        ):
            connections += work(server, TURN_SECONDS)
        readings.append((f"{share:.0%}", at_rest(server, volume)))
    readings.append(("forgotten", at_rest(server, volume, forget=True)))
    assert wait_until(lambda: Gauges.read(volume).threads <= readings[0][1].threads, 30)
    seconds = time.monotonic() - began
    made = readings[-1][1].relation_files_made - first
    print(f"{seconds:.0f} s, {connections} connections, {made} files made")
    print(table(readings))

    half, after = readings[-4][1], readings[-2][1]
    before_forgotten, forgotten = readings[1][1], readings[-1][1]
    with_names = sum(1 for _ in volume.data.rglob("*"))
    # without being asked to forget: nothing that has no name any more is known, or held open
    for gauges in (after, forgotten):
        assert gauges.deleted <= gauges.open_handles
        assert gauges.known_inodes <= with_names + gauges.open_handles + 50
        assert gauges.files <= IDLE + gauges.open_handles
        assert gauges.directories <= IDLE
    # asked to forget, it is as it was, but for the files that the daemon keeps open
    assert forgotten.known_inodes - forgotten.files <= before_forgotten.known_inodes - before_forgotten.files + 20
    assert forgotten.directories <= before_forgotten.directories + 20
    assert forgotten.other_descriptors <= before_forgotten.other_descriptors
    assert forgotten.open_handles <= before_forgotten.open_handles + 20
    assert forgotten.locks == before_forgotten.locks
    assert after.log_lines == readings[0][1].log_lines
    assert volume.complaints() == []
    # memory levels off, and is bounded
    assert after.pss_kb - half.pss_kb < 3_000, "memory grows in the second half, too"
    assert after.pss_kb - readings[0][1].pss_kb < 10_000
    assert after.pss_kb < MOST_MEMORY_KB
    # the backing directory holds what PostgreSQL knows of, and nothing else
    server.psql("CHECKPOINT")
    assert orphans(server, volume) == []
    server.stop()
    assert differences(volume) == []
    assert volume.status()["open_handles"] == 0
    assert after.backing_files < readings[0][1].backing_files + 100
    volume.umount()

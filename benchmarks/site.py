"""One system with the PostgreSQL server that runs on it, and what the metrics need there."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ProcessorTime, processor_time
from benchmarks.sizes import Sizes
from benchmarks.systems.base import System
from tests.support.postgres import Installation
from tests.support.server import Server

#: The same for every system. What is not here is PostgreSQL's default, checksums apart: initdb switches them on.
SETTINGS = {
    "shared_buffers": "128MB",
    "fsync": "on",
    "full_page_writes": "on",
    # no checkpoint and no vacuum but those that a metric asks for
    "checkpoint_timeout": "1h",
    "max_wal_size": "8GB",
    "min_wal_size": "2GB",
    "autovacuum": "off",
    "jit": "off",
    # milliseconds since the epoch: the times of start, stop and recovery are read from the log
    "log_line_prefix": "'%n [%p] '",
    # What tdefs recommends, for all: bulk WAL leaves in large writes, by the WAL writer, and not page by page.
    # wal_sync_method belongs to the set-up of each system, so that each has the one that is best for it.
    "wal_buffers": "64MB",
    "wal_writer_delay": "10ms",
}
DATABASE = "bench"
_ACCOUNTS_OF_SCALE = 100_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What server and daemon have used."""

    server: ProcessorTime
    daemon: ProcessorTime

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.server - other.server, self.daemon - other.daemon)


class Site:
    """Made by :meth:`open`, which starts the server. Databases and tables are made when they are first needed."""

    def __init__(self, name: str, system: System, installation: Installation, sizes: Sizes) -> None:
        self.name = name
        self.system = system
        self.installation = installation
        self.sizes = sizes
        self._made: set[str] = set()
        # On the disk, outside of the file system under test.
        self.scratch = system.root / "scratch"
        self.scratch.mkdir()
        system.account.own(self.scratch)
        self.server = self.new_server("main")

    def new_server(self, name: str) -> Server:
        """Return a server for a data directory of its own in the storage, not initialised."""
        return Server(self.installation, self.system.account, self.system.storage / name, self.scratch)

    def open(self) -> None:
        """Make the file system and the cluster, and start the server.

        :raises Unavailable: the system does not work on this machine.
        """
        self.system.prepare()
        self.system.mount()
        self.server.initdb("--no-sync")
        self.server.configure(self.settings)
        self.start()

    def discard(self) -> None:
        """Stop and unmount everything, whatever state it is in."""
        try:
            self.server.discard()
        finally:
            self.system.discard()

    @property
    def settings(self) -> dict[str, str]:
        """The server's settings: those of all, and the system's own."""
        return {**SETTINGS, "wal_sync_method": self.system.variant.wal_sync_method}

    # --- the server

    def start(self, **settings: str) -> None:
        """Start the server, with settings that hold until it is stopped."""
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        server = self.server
        words = ("-w", "-t", "300", "-D", server.pgdata, "-l", server.log, "-o", options)
        server.run("pg_ctl", "start", *words)

    def restart(self, **settings: str) -> None:
        """Stop the server cleanly and start it."""
        self.server.stop()
        self.start(**settings)

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run SQL; return the rows."""
        return self.server.psql(sql, database)

    def seconds(self, sql: str, database: str = DATABASE, *, warm_up: str = "SELECT") -> float:
        """Return how long a statement takes in a session that is connected already."""
        with self.server.session(database) as session:
            session.sql(warm_up)
            began = time.perf_counter()
            session.sql(sql)
            return time.perf_counter() - began

    @property
    def postmaster(self) -> int:
        """The process that all others of the server descend from."""
        return int((self.server.pgdata / "postmaster.pid").read_text().split()[0])

    def usage(self) -> Usage:
        """Return what the server, with its children, and the daemon have used so far."""
        return Usage(processor_time([self.postmaster]), processor_time(self.system.daemons))

    # --- pgbench

    def pgbench(self, *arguments: str | Path, database: str = DATABASE) -> Pgbench:
        """Run pgbench; only a run with ``--log`` knows latencies."""
        with tempfile.TemporaryDirectory(prefix="pgbench-", dir=self.scratch) as name:
            directory = Path(name)
            self.system.account.own(directory)
            logs = (f"--log-prefix={directory / 'log'}",) if "--log" in arguments else ()
            before = self.usage()
            output = self.server.run("pgbench", *arguments, *logs, database).stdout
            usage = self.usage() - before
            # client, transaction, latency in microseconds, …
            latencies = [
                int(line.split(None, 3)[2]) / 1000
                for path in directory.iterdir()
                for line in path.read_text().splitlines()
            ]
        return Pgbench(
            tps=float(_found(r"tps = ([\d.]+)", output)),
            transactions=int(_found(r"actually processed: (\d+)", output)),
            latencies_ms=latencies,
            usage=usage,
        )

    # --- what is made once

    def need_pgbench_database(self) -> None:
        """A database that does not fit shared_buffers."""
        if not self._first_need("pgbench"):
            return
        self.psql(f"CREATE DATABASE {DATABASE}")
        self.server.run("pgbench", "-i", "-q", "-s", str(self.sizes.scale), DATABASE)
        self.psql("CREATE EXTENSION pg_prewarm", DATABASE)

    def need_table(self, name: str, *statements: str) -> None:
        """A table in that database."""
        self.need_pgbench_database()
        if self._first_need(name):
            for sql in statements:
                self.psql(sql, DATABASE)

    @property
    def load_rows(self) -> int:
        """The rows of what is loaded, copied and rewritten."""
        return self.sizes.load_scale * _ACCOUNTS_OF_SCALE

    def _first_need(self, name: str) -> bool:
        first = name not in self._made
        self._made.add(name)
        return first

    # --- the same state before every measurement

    def make_warm(self) -> None:
        """Have the database in the kernel's cache, and nothing to write."""
        for relation in ("pgbench_accounts", "pgbench_accounts_pkey"):
            self.psql(f"SELECT pg_prewarm('{relation}', 'read')", DATABASE)
        self.psql("CHECKPOINT")
        os.sync()


@dataclass(frozen=True, slots=True)
class Pgbench:
    """What one run of pgbench said."""

    tps: float
    transactions: int
    latencies_ms: list[float]
    usage: Usage


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if not match:
        raise LookupError(f"no {pattern} in: {text}")
    return match[1]


def log_times(server: Server, since: int, message: str) -> list[tuple[float, str]]:
    """Return when the server logged a message, in seconds since the epoch, with the line.

    :param since: the position in the log, in characters, to search from
    """
    lines = server.log.read_text(errors="replace")[since:].splitlines()
    return [(float(line.split()[0]), line) for line in lines if message in line]


def remove_tree(site: Site, path: Path) -> None:
    """Remove a directory of the server's user."""
    subprocess.run(site.system.account.command("rm", "-rf", "--", path), check=True)

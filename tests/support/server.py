"""A PostgreSQL server on a data directory, driven by PostgreSQL's own programs."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path

from tests.support.account import Account
from tests.support.postgres import Installation
from tests.support.processes import end, is_postgres, processes_in
from tests.support.session import Session

#: Seconds after which a program hangs.
LIMIT = 300
SETTINGS = {
    "listen_addresses": "''",
    "fsync": "on",
    "log_line_prefix": "'%m [%p] '",
}


class Server:
    """A cluster and its server. The log and the socket are outside of the data directory."""

    def __init__(self, installation: Installation, account: Account, pgdata: Path, directory: Path) -> None:
        """:param directory: for the log and the socket; a Unix socket's path has at most 107 bytes"""
        self.installation = installation
        self.account = account
        self.pgdata = pgdata
        self.log = directory / f"{pgdata.name}.log"
        self.socket_directory = Path(tempfile.mkdtemp(prefix="s", dir=directory))
        self.port = _free_port()
        #: What the server and its programs get beside the usual environment, or instead of it.
        self.environment: dict[str, str] = {}
        account.own(self.socket_directory)
        self.log.touch(0o600)
        account.own(self.log)

    # --- the cluster

    def initdb(self, *arguments: str) -> None:
        """Make a cluster with checksums in the data directory, which must be empty."""
        self.run("initdb", "-D", self.pgdata, "--data-checksums", "--locale=C", "--encoding=UTF8", *arguments)
        self.configure(
            {**SETTINGS, "port": str(self.port), "unix_socket_directories": f"'{self.socket_directory}'"}
        )

    def configure(self, settings: dict[str, str]) -> None:
        """Append settings to postgresql.conf; they hold from the next start."""
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        with (self.pgdata / "postgresql.conf").open("a") as configuration:
            configuration.write(lines)

    # --- the server

    def start(self, options: str = "", *, seconds: int = LIMIT) -> None:
        """Return when the server answers.

        :param options: for the server's command line

        :param seconds: how long it may take
        """
        self.run("pg_ctl", "start", "-w", "-t", str(seconds), "-D", self.pgdata, "-l", self.log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """:param mode: ``immediate`` is a crash to the next start"""
        self.run("pg_ctl", "stop", "-w", "-t", str(LIMIT), "-D", self.pgdata, "-m", mode)

    @property
    def is_running(self) -> bool:
        return self.run("pg_ctl", "status", "-D", self.pgdata, check=False).returncode == 0

    def discard(self) -> None:
        """Stop it at once, also when its data directory is a dead mount, which pg_ctl cannot read."""
        end([pid for pid in processes_in(self.pgdata) if is_postgres(pid)])

    # --- SQL and tools

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run SQL, each statement in a transaction of its own; return the rows, columns separated by ``|``."""
        return self._execute([*self._psql(database), "-f", "-"], text=sql).stdout.rstrip("\n")

    def psql_file(self, path: Path, database: str = "postgres", **variables: str) -> str:
        """Run a file of SQL that may use ``:variable``."""
        settings = [f"--set={name}={value}" for name, value in variables.items()]
        return self._execute([*self._psql(database), *settings, "-f", "-"], text=path.read_text()).stdout

    def session(self, database: str = "postgres") -> Session:
        """A connection that stays open."""
        return Session(self.account.command(*self._psql(database)), self._environment())

    def run(self, program: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user, connected to this server."""
        words = [str(argument) for argument in arguments]
        return self._execute([str(self.installation.program(program)), *words], check=check)

    def popen(self, program: str, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start one of PostgreSQL's programs; its output, errors too, is in ``stdout``."""
        return subprocess.Popen(
            self.account.command(self.installation.program(program), *arguments),
            env=self._environment(),
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _psql(self, database: str) -> list[str]:
        psql = str(self.installation.program("psql"))
        return [psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database]

    def _environment(self) -> dict[str, str]:
        place = {"PGHOST": str(self.socket_directory), "PGPORT": str(self.port)}
        return {**self.account.environment(), **place, **self.environment}

    def _execute(
        self, command: list[str], *, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        # Files instead of pipes: the server that pg_ctl starts inherits them, and a reader of a pipe would wait.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                self.account.command(*command),
                env=self._environment(),
                cwd="/",
                text=True,
                input=text if text is not None else "",
                stdout=output,
                stderr=errors,
                timeout=LIMIT,
                check=False,
            )
            output.seek(0)
            errors.seek(0)
            result = subprocess.CompletedProcess(command, done.returncode, output.read(), errors.read())
        assert not check or result.returncode == 0, (
            f"{' '.join(command)}\nexit code {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
            f"\n--- the end of the server's log\n{self.log_tail()}"
        )
        return result


def _free_port() -> int:
    """A port that no one uses; the sockets are in directories of their own, so a race does no harm."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

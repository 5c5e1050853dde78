"""Clients that write down outside of the server which commits it has acknowledged, and hold it to them.

What a client asked for and got no answer to is in doubt: after recovery it is there as a whole, or not at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import psycopg

from tests.support.processes import wait_until
from tests.support.server import Server

CLIENTS = 3
ACCOUNTS = 500
BALANCE = 1000
#: Seconds that a client may take to notice that its server is gone.
_PATIENCE = 60

# with a limit of -2 a database is half dropped, and no longer there for anybody
_DATABASES = "SELECT datname FROM pg_database WHERE datname LIKE 'db%' AND datconnlimit <> -2"
Work = Callable[[psycopg.Connection, Random], None]

_SETUP = f"""
    CREATE TABLE ledger (client int, number int, note text, PRIMARY KEY (client, number));
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text);
    INSERT INTO accounts SELECT id, {BALANCE}, repeat('x', 200) FROM generate_series(1, {ACCOUNTS}) id;
"""
# every third note is long enough to be stored out of line
_NOTE = (
    "(SELECT string_agg(md5(%(client)s || ':' || %(number)s || ':' || i), '') FROM generate_series(1, %(size)s) i)"
)


@dataclass
class Account:
    """What one client knows."""

    acknowledged: int = 0
    #: The number of the commit that was under way when the server went away.
    in_doubt: int | None = None


@dataclass
class Objects:
    """Tables and databases that one client makes and drops, with their numbers of rows."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    #: A statement that was under way: the object, and its rows before and after; ``None`` where it is not there.
    in_doubt: tuple[str, int | None, int | None] | None = None

    def allows(self, found: dict[str, int]) -> bool:
        """Whether the objects found are those acknowledged, with the one in doubt before or after."""
        if self.in_doubt is None:
            return found == self.acknowledged
        name, before, after = self.in_doubt
        states = []
        for rows in (before, after):
            state = {other: count for other, count in self.acknowledged.items() if other != name}
            states.append(state if rows is None else {**state, name: rows})
        return found in states


class Ledger:
    """All that the server has acknowledged, kept by threads of this process."""

    def __init__(self) -> None:
        self.accounts = {client: Account() for client in range(CLIENTS)}
        self.tables = Objects()
        self.databases = Objects()
        #: How many commits were acknowledged in all.
        self.commits = 0
        self._made = 0
        self._stopping = threading.Event()
        self._dying = threading.Event()
        self._surprises: list[str] = []

    def set_up(self, server: Server) -> None:
        """Make the tables, in a new cluster."""
        server.psql(f"CREATE DATABASE pattern; CREATE EXTENSION amcheck; {_SETUP}")
        server.psql(_SETUP, "pattern")

    # --- the load

    @contextmanager
    def clients(self, server: Server, disturbance: str, dice: Random) -> Iterator[None]:
        """Commits go on, and beside them what the disturbance does, until the block ends.

        The block begins when a first one was acknowledged. The server may go away once :meth:`expect_death` was
        called; an error before that is a failure.
        """
        self._stopping.clear()
        self._dying.clear()
        seeds = [dice.randrange(1 << 32) for _ in range(CLIENTS + 1)]
        threads = [
            threading.Thread(
                target=self._run, args=(self._commit, server, client, Random(seeds[client])), daemon=True
            )
            for client in range(CLIENTS)
        ]
        work = getattr(self, f"_{disturbance}")
        threads.append(
            threading.Thread(target=self._run, args=(self._disturb, server, work, Random(seeds[-1])), daemon=True)
        )
        before = self.commits
        for thread in threads:
            thread.start()
        try:
            assert wait_until(lambda: self.commits > before or bool(self._surprises), _PATIENCE), "nothing commits"
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(_PATIENCE)
                assert not thread.is_alive(), "a client hangs"
            assert not self._surprises, f"errors before anything was done to the server: {self._surprises}"

    def expect_death(self) -> None:
        """From now on the clients may find the server gone."""
        self._dying.set()

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        """One client, from connection to the end of the server."""
        try:
            work(*arguments)
        except psycopg.Error as error:
            if not self._dying.is_set():
                self._surprises.append(str(error))

    def _commit(self, server: Server, client: int, dice: Random) -> None:
        account = self.accounts[client]
        with self._connect(server) as connection:
            while not self._stopping.is_set():
                number = account.acknowledged + 1
                one, other = dice.sample(range(1, ACCOUNTS + 1), 2)
                amount = dice.randrange(-50, 51)
                account.in_doubt = number
                with connection.transaction():
                    values = {"client": client, "number": number, "size": 200 if number % 3 == 0 else 1}
                    connection.execute(f"INSERT INTO ledger VALUES (%(client)s, %(number)s, {_NOTE})", values)
                    # in one order, so that no two wait for each other
                    for identifier, change in sorted(((one, amount), (other, -amount))):
                        connection.execute(
                            "UPDATE accounts SET balance = balance + %s WHERE id = %s", (change, identifier)
                        )
                account.acknowledged, account.in_doubt = number, None
                self.commits += 1

    def _disturb(self, server: Server, work: Work, dice: Random) -> None:
        with self._connect(server) as connection:
            while not self._stopping.wait(dice.random() * 0.05):
                work(connection, dice)

    # --- the disturbances: what else may be under way when everything dies

    def _checkpoints(self, connection: psycopg.Connection, dice: Random) -> None:
        connection.execute("CHECKPOINT")

    def _segment_switches(self, connection: psycopg.Connection, dice: Random) -> None:
        connection.execute("SELECT pg_logical_emit_message(true, 'ledger', repeat('x', 100000))")
        connection.execute("SELECT pg_switch_wal()")

    def _rewrites(self, connection: psycopg.Connection, dice: Random) -> None:
        connection.execute(
            dice.choice(
                (
                    "VACUUM FULL ledger",
                    "VACUUM FULL accounts",
                    "VACUUM (FREEZE) ledger",
                    "CLUSTER ledger USING ledger_pkey",
                    "REINDEX TABLE accounts",
                    "REINDEX TABLE CONCURRENTLY ledger",
                    "VACUUM FULL pg_class",
                )
            )
        )

    def _definitions(self, connection: psycopg.Connection, dice: Random) -> None:
        """Make tables, fill, rewrite and drop them."""
        rows = dice.randrange(1, 5000)
        name = self._new_name("made")
        statement = f"CREATE TABLE {name} AS SELECT i, md5(i::text) AS text FROM generate_series(1, {rows}) i"
        self._change(connection, self.tables, statement, name, rows)
        connection.execute(f"CREATE INDEX ON {name} (text)")
        connection.execute(f"ALTER TABLE {name} ALTER i TYPE bigint")
        name = dice.choice(list(self.tables.acknowledged))
        if dice.random() < 0.3:
            self._change(connection, self.tables, f"TRUNCATE {name}", name, 0)
        if len(self.tables.acknowledged) > 6:
            self._change(connection, self.tables, f"DROP TABLE {name}", name, None)

    def _new_databases(self, connection: psycopg.Connection, dice: Random) -> None:
        rows = ACCOUNTS
        name = self._new_name("db")
        strategy = dice.choice(("wal_log", "file_copy"))
        statement = f"CREATE DATABASE {name} TEMPLATE pattern STRATEGY {strategy}"
        self._change(connection, self.databases, statement, name, rows)
        if len(self.databases.acknowledged) > 2:
            name = dice.choice(list(self.databases.acknowledged))
            self._change(connection, self.databases, f"DROP DATABASE {name}", name, None)

    def _nothing(self, connection: psycopg.Connection, dice: Random) -> None:
        """Leave the commits alone."""

    def _change(
        self, connection: psycopg.Connection, objects: Objects, statement: str, name: str, rows: int | None
    ) -> None:
        objects.in_doubt = (name, objects.acknowledged.get(name), rows)
        connection.execute(statement)
        if rows is None:
            del objects.acknowledged[name]
        else:
            objects.acknowledged[name] = rows
        objects.in_doubt = None
        self.commits += 1

    # --- the reckoning

    def check(self, server: Server) -> None:
        """Hold the server to what it has acknowledged; what was in doubt is settled by what is found."""
        with self._connect(server) as connection:
            for scan in ("SET enable_indexscan = off; SET enable_bitmapscan = off", "SET enable_seqscan = off"):
                connection.execute(scan)
                for client, account in self.accounts.items():
                    self._check_client(connection, client, account)
                total = connection.execute("SELECT sum(balance), count(*) FROM accounts").fetchone()
                assert total == (ACCOUNTS * BALANCE, ACCOUNTS), "a transfer is there by halves"
            tables = self._rows_of_tables(connection)
            names = connection.execute(_DATABASES).fetchall()
        databases = {str(name): self._rows_of_database(server, str(name)) for (name,) in names}
        for kind, objects, found in (("tables", self.tables, tables), ("databases", self.databases, databases)):
            assert objects.allows(found), (
                f"{kind} {found}, but acknowledged were {objects.acknowledged}, in doubt is {objects.in_doubt}"
            )
            objects.acknowledged, objects.in_doubt = found, None

    def _check_client(self, connection: psycopg.Connection, client: int, account: Account) -> None:
        rows = connection.execute(
            "SELECT number, note = (SELECT string_agg(md5(client || ':' || number || ':' || i), '')"
            " FROM generate_series(1, CASE WHEN number %% 3 = 0 THEN 200 ELSE 1 END) i)"
            " FROM ledger WHERE client = %s ORDER BY number",
            (client,),
        ).fetchall()
        found = [int(number) for number, _ in rows]
        allowed = [account.acknowledged, *([account.in_doubt] if account.in_doubt else [])]
        assert found == list(range(1, len(found) + 1)) and len(found) in allowed, (
            f"client {client}: {len(found)} commits are there up to number {max(found, default=0)}, "
            f"acknowledged were {account.acknowledged}"
        )
        assert all(right for _, right in rows), f"client {client}: a row is not what was written"
        account.acknowledged, account.in_doubt = len(found), None

    def _rows_of_tables(self, connection: psycopg.Connection) -> dict[str, int]:
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'made%%'"
        ).fetchall()
        return {str(name): _count(connection, str(name)) for (name,) in names}

    def _rows_of_database(self, server: Server, name: str) -> int:
        with self._connect(server, name) as connection:
            return _count(connection, "accounts")

    # --- helpers

    def _new_name(self, prefix: str) -> str:
        self._made += 1
        return f"{prefix}{self._made}"

    def _connect(self, server: Server, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            host=str(server.socket_directory),
            port=server.port,
            user=server.account.name,
            dbname=database,
            autocommit=True,
        )


def _count(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row
    return int(row[0])

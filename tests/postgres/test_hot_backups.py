"""Backups of ciphertext in use, by the commands of docs/BACKUP.md: restored, recovered, complete, sound."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.crash.faults.loop_disks import Btrfs, run
from tests.support.children import needs_root
from tests.support.mounts import detach
from tests.support.server import Server
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slow(seconds=20), needs_root]

DOCUMENT = Path(__file__).parents[2] / "docs" / "BACKUP.md"
BACKUP, TAR, RESTORE = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
COPYING = 'copy "$BACKING" "$COPY"\n'
#: A copy that takes hours: what it reads last has changed since it read what it read first, and for the first time
#: since the volume was mounted, so that the manifest and its journal from before know nothing of it.
SLOWLY = (
    COPYING
    + """runuser -u postgres -- psql -Xq -v ON_ERROR_STOP=1 <<'SQL'
INSERT INTO grows SELECT generate_series(1, 100000);
DROP TABLE goes;
TRUNCATE shrinks;
CHECKPOINT;
SQL
copy "$BACKING/data" "$COPY/data"
"""
)


def script(text: str, **places: str | Path) -> str:
    """A block of the document, with the places of a test in its first line."""
    first, _, rest = text.partition("\n")
    assert set(re.findall(r"(\w+)=", first)) == set(places)
    return " ".join(f"{name}='{place}'" for name, place in places.items()) + "\n" + rest


def bash(text: str, server: Server) -> str:
    """Runs a script as root, with ``psql`` as its user would call it; returns what it said."""
    programs = [str(server.installation.bindir), str(TDEFS.parent), os.environ["PATH"]]
    done = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": ":".join(programs), "PGHOST": str(server.socket_directory), "PGPORT": str(server.port)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def position(lsn: str) -> int:
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


class Load:
    """Commits one row after the other beside pgbench, and remembers where in WAL each was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, int] = {}

    @contextmanager
    def on(self, server: Server) -> Iterator[None]:
        stop = Event()
        failed: list[BaseException] = []

        def commit() -> None:
            try:
                with server.session("postgres") as session:
                    for number in range(1_000_000):
                        if stop.is_set():
                            return
                        session.sql(f"INSERT INTO ledger VALUES ({number}, repeat('x', {number % 3000}))")
                        self.acknowledged[number] = position(session.sql("SELECT pg_current_wal_insert_lsn()"))
            except BaseException as error:
                failed.append(error)

        bench = server.popen(
            "pgbench", "-n", "-c", "2", "-T", "120", *("-h", str(server.socket_directory), "-p", str(server.port))
        )
        writer = Thread(target=commit)
        writer.start()
        try:
            time.sleep(1)
            yield
            time.sleep(0.5)
        finally:
            stop.set()
            writer.join(30)
            bench.terminate()
            bench.communicate(timeout=30)
        assert failed == []


def cluster(space: Workspace, volume: Volume) -> Server:
    volume.init()
    volume.mount(owner=space.account)
    server = space.server("15", volume.mountpoint / "main")
    server.initdb()
    server.configure({"max_wal_size": "32MB", "checkpoint_timeout": "30s", "wal_keep_size": "0"})
    server.start()
    server.psql("CREATE TABLE ledger (number int PRIMARY KEY, text text); CREATE EXTENSION amcheck")
    for name in ("grows", "goes", "shrinks"):
        server.psql(f"CREATE TABLE {name} AS SELECT generate_series(1, 1000) AS i")
    server.run("pgbench", "-i", "-q", "-s", "1")
    # as with every volume that is not new, there is a manifest, which the copy of a later moment does not fit
    server.stop()
    volume.umount()
    volume.mount()
    server.start()
    return server


def restored(space: Workspace, original: Volume, name: str) -> Volume:
    """A volume, still to be filled, with a copy of the keystore and its secret."""
    volume = space.volume(name)
    volume.backing.rmdir()
    shutil.copy2(original.keystore, volume.keystore)
    volume.key_file = original.key_file
    return volume


def check(space: Workspace, volume: Volume, load: Load, lsn: int, *, slowly: bool = False) -> None:
    """Recovers the cluster of a mounted volume: all that was acknowledged by then is there, nothing is damaged."""
    server = space.server("15", volume.mountpoint / "main")
    server.configure(
        {
            "port": str(server.port),
            "unix_socket_directories": f"'{server.socket_directory}'",
            "shared_buffers": "16MB",
        }
    )
    server.start()
    if slowly:
        assert server.psql("SELECT (SELECT count(*) FROM grows), (SELECT count(*) FROM shrinks)") == "101000|0"
    found = {int(line) for line in server.psql("SELECT number FROM ledger").split()}
    expected = {number for number, acknowledged in load.acknowledged.items() if acknowledged <= lsn}
    assert len(expected) > 50
    assert expected <= found
    assert found == set(range(len(found))), "a later commit is there, an earlier one is not"
    assert server.psql("SELECT sum(abalance) FROM pgbench_accounts") == server.psql(
        "SELECT sum(delta) FROM pgbench_history"
    )
    server.run("pg_amcheck", "--all", "--heapallindexed", "--install-missing")
    server.stop()
    server.run("pg_checksums", "--check", "-D", server.pgdata)
    volume.umount()
    volume.tdefs("verify", volume.backing, "--keystore", volume.keystore, *volume.unlock)


@pytest.mark.parametrize("tool", ["rsync", "tar"])
def test_a_hot_copy_of_the_backing_directory_is_recovered_with_all_commits(scratch: Workspace, tool: str) -> None:
    original = scratch.volume("original")
    server = cluster(scratch, original)
    copy = scratch.directory("copy") / "main"
    text = script(BACKUP, BACKING=original.backing, COPY=copy, WAL="data/main/pg_wal")
    assert text.count(COPYING) == 1
    text = text.replace(COPYING, SLOWLY)
    if tool == "tar":
        text = re.sub(r"^copy\(\).*$", lambda _: TAR.splitlines()[-1], text, flags=re.MULTILINE)
    assert text.count(tool) >= 1
    load = Load()
    with load.on(server):
        said = bash(text, server)
        # what the copy relies on is in the copy: the original may go on, and recycle its WAL
        server.psql("SELECT pg_switch_wal(); CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT")
    match = re.search(r"can be recovered from (\S+)", said)
    assert match
    assert server.psql("SELECT count(*) FROM pg_replication_slots") == "0"
    if tool == "rsync":  # the disk is lost, and the volume comes back to its place and keystore
        original.kill()
        server.discard()
        detach(original.mountpoint)
        shutil.rmtree(original.backing)
        volume = original
    else:  # on another host, from an original that has gone on
        server.stop("immediate")
        original.umount()
        volume = restored(scratch, original, "restored")
        for name in (".history", ".history.head"):  # which know of the newer one
            shutil.copy2(f"{original.keystore}{name}", f"{volume.keystore}{name}")
    places = {"BACKING": volume.backing, "COPY": copy, "KEYSTORE": volume.keystore}
    places |= {"MOUNTPOINT": volume.mountpoint, "CLUSTER": Path("main")}
    unlocked = script(RESTORE, **places).replace('"$KEYSTORE"', f'"$KEYSTORE" --key-command "{volume.unlock[1]}"')
    bash(unlocked, server)
    assert volume.status()["tampering"]["differences"] == []
    assert volume.status()["tampering"]["older_than"] is None
    volume.tdefs("accept", "--list", "--volume", volume.backing, "--keystore", volume.keystore, *volume.unlock)
    check(scratch, volume, load, position(match[1]), slowly=True)


def test_an_atomic_snapshot_is_recovered_without_backup_mode(scratch: Workspace) -> None:
    original = scratch.volume("original")
    disk = Btrfs(original.root, 1000)
    with disk.mounted() as place:
        run("btrfs", "subvolume", "create", place / "tdefs")
        original.backing.rmdir()
        original.backing = place / "tdefs" / "main"
        original.backing.mkdir()
        server = cluster(scratch, original)
        load = Load()
        with load.on(server):
            lsn = position(server.psql("SELECT pg_current_wal_flush_lsn()"))
            run("btrfs", "subvolume", "snapshot", place / "tdefs", place / "snapshot")
        server.stop("immediate")
        original.umount()

        volume = restored(scratch, original, "snapshot")
        volume.backing = place / "snapshot" / "main"
        # its copy of the keystore has no history, which would know the session that the snapshot cuts
        volume.tdefs("volume", "moved", volume.backing, "--keystore", volume.keystore, *volume.unlock)
        volume.mount()
        (volume.mountpoint / "main" / "postmaster.pid").unlink()
        check(scratch, volume, load, lsn)

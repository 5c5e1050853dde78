"""Whoever can write to the backing directory leads no server elsewhere: not by links, nor by FIFOs or devices.

Each attack is made while the volume is not mounted, and without any key. The mounts that serve what was planted
only report what the manifest has noticed, so what is refused is refused as planted.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tdefs.errors import Exit
from tests.support.pristine import Pristine
from tests.support.processes import send, wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

SECRET = "card number 4111-1111"
#: Small ones, as most of the time would go into copying them.
SEGMENT = 1 << 20
#: More than the recycled segments hold.
MANY = f"INSERT INTO t SELECT '{SECRET}' FROM generate_series(1, 180000)"
#: For each attack those that it takes, and one that is left alone.
SPACES = 7


@dataclass
class Site:
    """A cluster with tablespaces on a volume of their own; nothing is mounted when a test begins."""

    data: Volume
    spaces: Volume
    server: Server
    #: For what the attacker has; everybody may write there.
    loot: Path
    oids: list[str] = field(default_factory=list)

    @property
    def volumes(self) -> list[Volume]:
        return [self.data, self.spaces]

    def space(self, number: int) -> Path:
        return self.spaces.mountpoint / f"s{number}"

    def mount(self) -> None:
        for volume in self.volumes:
            if not volume.is_mounted:
                volume.mount(*volume.reporting)

    def start(self) -> None:
        self.mount()
        self.server.start()

    def starts(self) -> bool:
        """Tries to start the server, which must not take long over it."""
        begun = time.monotonic()
        words = "pg_ctl", "start", "-w", "-t", "30", "-D", self.server.pgdata, "-l", self.server.log
        done = self.server.run(*words, check=False)
        assert time.monotonic() - begun < 25, "something waited"
        return done.returncode == 0

    def tries(self, sql: str) -> subprocess.CompletedProcess[str]:
        return self.server.run("psql", "-X", "-c", sql, "postgres", check=False)

    def end(self) -> None:
        if self.data.is_mounted and self.server.is_running:
            self.server.stop("immediate")
        for volume in self.volumes:
            if volume.is_mounted:
                volume.umount()

    def verified(self) -> tuple[int, Any]:
        place = self.data.backing, "--keystore", self.data.keystore
        done = self.data.tdefs("verify", *place, *self.data.unlock, "--json", "-q", check=False)
        return done.returncode, json.loads(done.stdout)

    def assert_found(self, *paths: str) -> None:
        """What was planted is a finding of verify, by its name, and of ls."""
        code, found = self.verified()
        assert code == Exit.VERIFY_FOUND_DAMAGE
        planted = [one for one in found["findings"] if "not as the last unmount left it" not in json.dumps(one)]
        assert set(paths) <= {one["path"] for one in planted}
        listed = json.loads(self.data.tdefs("ls", self.data.backing, *self.data.unlock, "--json").stdout)
        assert set(paths) <= {one["path"] for one in listed if one["state"] == "damaged"}

    def plain(self, name: str, content: bytes) -> Path:
        path = self.loot / name
        path.write_bytes(content)
        path.chmod(0o600)
        self.server.account.own(path)
        return path

    def replace_by_link(self, path: str, target: Path) -> None:
        (self.data.data / path).unlink()
        (self.data.data / path).symlink_to(target)

    def wrote(self, text: str) -> bool:
        """Whether anything of the attacker's now holds *text*."""
        files = [path for path in self.loot.rglob("*") if path.is_file()]
        return any(text.encode() in path.read_bytes() for path in files)

    def remove(self, *paths: str) -> None:
        """As a DBA does it: through the mount."""
        for path in paths:
            (self.server.pgdata / path).unlink()

    def put_back(self, path: str, content: bytes) -> None:
        """In the place of what was planted, as a DBA does it: through the mount."""
        self.remove(path)
        place = self.server.pgdata / path
        place.write_bytes(content)
        place.chmod(0o600)
        self.server.account.own(place)


#: What tests damage, and put back through the mount.
WHOLE = ("pg_hba.conf", "postgresql.conf", "global/pg_control", "pg_xact/0000")


@pytest.fixture(scope="module")
def made(workspace: Workspace) -> Iterator[tuple[Site, Pristine, dict[str, bytes]]]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        data, spaces = (workspace.volume(name) for name in ("data", "spaces"))
        for volume in (data, spaces):
            volume.init()
            volume.mount(owner=workspace.account)
        server = workspace.server("15", data.mountpoint)
        loot = workspace.directory("loot")
        loot.chmod(0o777)
        site = Site(data, spaces, server, loot)
        server.initdb("--no-sync", "--wal-segsize=1")
        server.configure({"min_wal_size": "8MB", "max_wal_size": "64MB", "restart_after_crash": "off"})
        server.start()
        sql = ["CREATE TABLE t (v text); INSERT INTO t VALUES ('row')"]
        for number in range(SPACES):
            site.space(number).mkdir(mode=0o700)
            server.account.own(site.space(number))
            sql.append(f"CREATE TABLESPACE s{number} LOCATION '{site.space(number)}'")
            sql.append(f"CREATE TABLE t{number} TABLESPACE s{number} AS SELECT 'in {number}' AS v")
        sql += [
            "INSERT INTO t VALUES ('more'); SELECT pg_switch_wal(); CHECKPOINT"
        ] * 8  # so that there are some to recycle
        server.psql(";\n".join(sql))
        site.oids = server.psql("SELECT oid FROM pg_tablespace WHERE spcname ~ '^s[0-9]' ORDER BY spcname").split()
        server.stop()
        whole = {path: (server.pgdata / path).read_bytes() for path in WHOLE}
        site.end()
        yield site, Pristine(server, *site.volumes), whole
    finally:
        workspace.release(volumes, servers)


@pytest.fixture
def site(made: tuple[Site, Pristine, dict[str, bytes]]) -> Iterator[Site]:
    """The cluster as it was made; nothing is mounted."""
    site, pristine, _ = made
    yield site
    pristine.restore()
    for path in site.loot.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture
def whole(made: tuple[Site, Pristine, dict[str, bytes]]) -> dict[str, bytes]:
    """What the mount shows of :data:`WHOLE` before an attack."""
    return made[2]


# --- what was planted


def test_recycled_wal_that_was_replaced_by_links_takes_no_secret_in_the_clear(site: Site) -> None:
    wal = site.data.data / "pg_wal"
    segments = sorted(path.name for path in wal.iterdir() if len(path.name) == 24)
    used = segments[0]
    recycled = [f"pg_wal/{name}" for name in segments[1:]]
    assert recycled, "the server has recycled no segments"
    for path in recycled:
        site.replace_by_link(path, site.plain(Path(path).name, bytes(SEGMENT)))
    site.assert_found(*recycled)
    site.mount()
    if site.starts():
        site.tries("SELECT pg_switch_wal()")
        site.tries(MANY)
    assert not site.wrote(SECRET)
    assert site.data.log.read_text().count("the symbolic link was not made by tdefs") >= 1
    # whoever has read the findings removes them, and all is well
    site.server.discard()  # if it has not ended by itself yet
    site.remove(*recycled)
    assert (site.server.pgdata / "pg_wal" / used).exists()
    site.server.start()
    site.server.psql(MANY)
    site.server.stop()
    assert not site.wrote(SECRET)


def test_settings_that_were_replaced_by_links_let_nobody_in_and_run_nothing(
    site: Site, whole: dict[str, bytes]
) -> None:
    touched = site.loot / "executed"
    evil = f"archive_mode = on\narchive_command = 'touch {touched}'\nport = {site.server.port}\n"
    evil += f"unix_socket_directories = '{site.server.socket_directory}'\nlisten_addresses = ''\n"
    planted = {"postgresql.conf": evil, "postgresql.auto.conf": evil}
    planted["pg_hba.conf"] = "local all all trust\nhost all all all trust\n"
    for name, text in planted.items():
        site.replace_by_link(name, site.plain(name, text.encode()))
    site.assert_found(*planted)
    site.mount()
    assert not site.starts()
    assert "postgresql.conf: the symbolic link was not made by tdefs" in site.data.log.read_text()
    site.put_back("postgresql.conf", whole["postgresql.conf"])
    assert not site.starts()
    assert "could not load" in site.server.log_tail()
    assert "pg_hba.conf: the symbolic link was not made by tdefs" in site.data.log.read_text()
    site.put_back("pg_hba.conf", whole["pg_hba.conf"])
    if site.starts():
        # PostgreSQL goes on without postgresql.auto.conf
        assert site.server.psql("SHOW archive_mode") == "off"
        site.server.psql("SELECT pg_switch_wal()")
        time.sleep(1)
    assert "postgresql.auto.conf: the symbolic link was not made by tdefs" in site.data.log.read_text()
    assert not touched.exists()


def test_a_directory_that_was_replaced_by_a_link_takes_no_rows_in_the_clear(site: Site) -> None:
    outside = site.loot / "base"
    (site.data.data / "base").rename(outside)
    (site.data.data / "base").symlink_to(outside)
    site.assert_found("base")
    site.mount()
    site.starts()
    assert site.tries("SELECT v FROM t").returncode != 0
    assert "base: the symbolic link was not made by tdefs" in site.data.log.read_text()


def _plant(site: Site, link: Path) -> None:
    outside = site.loot / "space"
    shutil.copytree(site.spaces.data / "s0", outside)
    subprocess.run(["chown", "-R", "--reference", site.spaces.data / "s0", outside], check=True)
    _set_text(link, outside)


def _set_text(link: Path, text: Path) -> None:
    link.unlink()
    link.symlink_to(text)


def test_a_tablespace_whose_link_was_planted_or_moved_is_refused(site: Site) -> None:
    links = [site.data.data / "pg_tblspc" / oid for oid in site.oids]
    _plant(site, links[0])
    one, two = links[1].readlink(), links[2].readlink()
    _set_text(links[1], two)
    _set_text(links[2], one)
    _set_text(links[3], links[6].readlink())
    links[4].unlink()
    os.link(links[5], links[4], follow_symlinks=False)
    # of two names of one link, none is believed
    refused = range(6)
    site.assert_found(*(f"pg_tblspc/{site.oids[number]}" for number in refused))
    site.mount()
    if site.starts():
        for number in refused:
            answer = site.tries(f"SELECT v FROM t{number}")
            assert answer.returncode != 0
            assert "Input/output error" in answer.stderr
            site.tries(f"CREATE TABLE n{number} TABLESPACE s{number} AS SELECT '{SECRET}' v")
        site.tries("CHECKPOINT")
        assert site.server.psql("SELECT v FROM t6") == "in 6", "whose link was copied elsewhere"
    assert not site.wrote(SECRET)
    named = [
        number
        for number in refused
        if f"pg_tblspc/{site.oids[number]}: the symbolic link" in site.data.log.read_text()
    ]
    assert named[:4] == [0, 1, 2, 3]
    assert named[4:], "of one link with two names"


@pytest.mark.parametrize("turn", range(3))
def test_a_node_in_the_place_of_a_file_is_refused_and_holds_nobody(
    site: Site, whole: dict[str, bytes], turn: int
) -> None:
    """Each kind of node in the place of each file, in three turns."""
    paths = ["global/pg_control", "pg_hba.conf", "pg_xact/0000"]  # in the order in which a server reads them
    for number, path in enumerate(paths):
        place = site.data.data / path
        status = place.stat()
        place.unlink()
        kind = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)[(number + turn) % 3]
        os.mknod(place, kind | 0o600, os.makedev(1, 5))
        os.chown(place, status.st_uid, status.st_gid)
    site.assert_found(*paths)
    site.mount()
    for path in paths:
        assert not site.starts()
        assert f"{path}: a FIFO, socket or device lies in the backing directory" in site.data.log.read_text()
        assert json.loads(site.data.tdefs("status", site.data.mountpoint, "--json").stdout)["daemon_answers"]
        assert Path(path).name in os.listdir((site.server.pgdata / path).parent)
        site.put_back(path, whole[path])
        assert stat.S_ISREG((site.data.data / path).lstat().st_mode)
    site.server.start()
    assert site.server.psql("SELECT v FROM t5") == "in 5"


# --- what is a server's own


def test_a_server_listens_in_its_data_directory_and_comes_back_after_kill_9(site: Site) -> None:
    site.mount()
    site.server.configure({"unix_socket_directories": f"'{site.server.pgdata}'"})
    site.server.environment["PGHOST"] = str(site.server.pgdata)
    try:
        for _ in range(2):
            site.server.start()
            socket = site.server.pgdata / f".s.PGSQL.{site.server.port}"
            assert stat.S_ISSOCK(socket.lstat().st_mode)
            assert stat.S_ISREG((site.data.data / socket.name).lstat().st_mode)
            assert site.server.psql("SELECT 1") == "1"
            pid = int((site.server.pgdata / "postmaster.pid").read_text().split()[0])
            send(pid, signal.SIGKILL)
            assert wait_until(partial(_is_gone, pid), 30)
            assert socket.exists(), "a killed server leaves its socket"
        assert wait_until(lambda: _shared_memory_is_free(site), 30)
        # and the daemon may end, too
        for volume in site.volumes:
            volume.umount()
        site.start()
        assert site.server.psql("SELECT count(*) > 0 FROM t0") == "t"
        site.server.stop()
        assert not (site.data.data / f".s.PGSQL.{site.server.port}").exists()
        assert site.verified()[1]["findings"] == []
    finally:
        del site.server.environment["PGHOST"]


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _shared_memory_is_free(site: Site) -> bool:
    """Whether the killed server's children have ended, which hold its memory."""
    if not site.starts():
        return False
    site.server.stop()
    return True


def test_tablespaces_survive_moves_backups_and_renames(site: Site, workspace: Workspace) -> None:
    """What a DBA does with links: all of it works on sealed ones, and what lists them tells where they lead to."""
    site.start()
    links = {oid: (site.server.pgdata / "pg_tblspc" / oid).readlink() for oid in site.oids}
    assert list(links.values()) == [site.space(number) for number in range(SPACES)]
    # a backup through the mount, with its tablespaces elsewhere
    target = workspace.data_directory("backup")
    maps: list[str] = []
    for number in range(SPACES):
        to = workspace.data_directory(f"space{number}")
        maps += ["-T", f"{site.space(number)}={to}"]
    site.server.run("pg_basebackup", "-D", target, "-X", "fetch", "--no-sync", "-c", "fast", *maps)
    assert sorted(path.name for path in (target / "pg_tblspc").iterdir()) == sorted(site.oids)
    site.server.psql("ALTER TABLESPACE s0 RENAME TO moved")
    site.server.stop()
    # a tablespace that moves: its link is made anew
    link = site.server.pgdata / "pg_tblspc" / site.oids[0]
    made = link.with_name("new")
    made.symlink_to(links[site.oids[0]])
    made.replace(link)
    # as pg_upgrade does it with a whole cluster
    (site.server.pgdata / "pg_tblspc").rename(site.server.pgdata / "pg_tblspc.old")
    (site.server.pgdata / "pg_tblspc.old").rename(site.server.pgdata / "pg_tblspc")
    _, found = site.verified()
    assert found["findings"] == []
    notes = {one["path"]: one["text"] for one in found["notes"]}
    for oid, target in links.items():
        assert notes[f"pg_tblspc/{oid}"] == f"leads to {target}"
    for volume in site.volumes:
        volume.umount()
    site.start()
    assert site.server.psql("SELECT v FROM t0, LATERAL (SELECT 1) x") == "in 0"
    assert site.server.psql("SELECT v FROM t1") == "in 1"
    site.server.stop()


def test_a_separate_wal_directory_is_a_sealed_link_that_is_told_of(scratch: Workspace) -> None:
    data, wal = (scratch.volume(name) for name in ("data", "wal"))
    for volume in (data, wal):
        volume.init()
        volume.mount(owner=scratch.account)
    server = scratch.server("15", data.mountpoint)
    server.initdb("--no-sync", "--wal-segsize=1", "-X", str(wal.mountpoint))
    assert (data.data / "pg_wal").readlink().name.startswith("tdefs:2:")
    server.start()
    server.psql("CREATE TABLE t AS SELECT 1 AS v; SELECT pg_switch_wal(); CHECKPOINT")
    server.stop("immediate")
    server.start()
    assert server.psql("SELECT v FROM t") == "1"
    server.stop()
    listed = json.loads(data.tdefs("ls", data.backing, *data.unlock, "--json").stdout)
    (link,) = [one for one in listed if one["kind"] == "link"]
    assert (link["path"], link["target"], link["leads_out"]) == ("pg_wal", str(wal.mountpoint), False)
    told = json.loads(data.tdefs("doctor", data.mountpoint, "--json", check=False).stdout)
    assert f"symbolic links: pg_wal -> {wal.mountpoint}" in [one["what"] for one in told]
    # the daemon has the keys
    assert f"-> {wal.mountpoint}" in data.tdefs("ls", data.backing).stdout
    # where it leads to is in the clear as soon as no volume is mounted there
    wal.umount()
    (link,) = [
        one
        for one in json.loads(data.tdefs("ls", data.backing, *data.unlock, "--json").stdout)
        if one["kind"] == "link"
    ]
    assert link["leads_out"]
    told = json.loads(data.tdefs("doctor", data.mountpoint, "--json", check=False).stdout)
    assert any(one["level"] == "risk" and f"pg_wal -> {wal.mountpoint}" in one["what"] for one in told)

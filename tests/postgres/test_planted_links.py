"""Whoever can write to the backing directory leads no server elsewhere: not by links, nor by FIFOs or devices.

Each attack is made while the volume is not mounted, and without any key.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tdefs.errors import Exit
from tests.support.processes import send, wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

SECRET = "card number 4111-1111"
SEGMENT = 16 << 20


@dataclass
class Site:
    """A cluster with two tablespaces, each on a volume of its own; nothing is mounted when a test begins."""

    data: Volume
    spaces: list[Volume]
    server: Server
    #: For what the attacker has; everybody may write there.
    loot: Path
    oids: list[str] = field(default_factory=list)

    @property
    def volumes(self) -> list[Volume]:
        return [self.data, *self.spaces]

    def mount(self) -> None:
        for volume in self.volumes:
            if not volume.is_mounted:
                volume.mount()

    def start(self) -> None:
        self.mount()
        self.server.start()

    def refuses_to_start(self) -> str:
        """Starts the server, which must not start, nor take long over it; returns the end of its log."""
        self.mount()
        begun = time.monotonic()
        done = self.server.run(
            *("pg_ctl", "start", "-w", "-t", "30", "-D", self.server.pgdata, "-l", self.server.log), check=False
        )
        assert done.returncode != 0
        assert time.monotonic() - begun < 25, "something waited"
        return self.server.log_tail()

    def end(self) -> None:
        if any(volume.is_mounted for volume in self.volumes) and self.server.is_running:
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
        assert set(paths) <= {one["path"] for one in found["findings"]}
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


@pytest.fixture(scope="module")
def made(workspace: Workspace) -> Iterator[Site]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        data, *spaces = (workspace.volume(name) for name in ("data", "one", "two"))
        for volume in (data, *spaces):
            volume.init()
            volume.mount(owner=workspace.account)
        server = workspace.server("15", data.mountpoint)
        loot = workspace.directory("loot")
        loot.chmod(0o777)
        site = Site(data, spaces, server, loot)
        server.initdb("--no-sync")
        server.configure({"min_wal_size": "80MB", "restart_after_crash": "off"})
        server.start()
        server.psql("CREATE TABLE t (v text); INSERT INTO t VALUES ('row')")
        for number, space in enumerate(spaces):
            server.psql(f"CREATE TABLESPACE s{number} LOCATION '{space.mountpoint}'")
            server.psql(f"CREATE TABLE t{number} TABLESPACE s{number} AS SELECT 'in {number}' AS v")
        site.oids = server.psql("SELECT oid FROM pg_tablespace WHERE spcname ~ '^s[01]' ORDER BY 1").split()
        for _ in range(8):  # so that there are segments to recycle
            server.psql("INSERT INTO t VALUES ('more'); SELECT pg_switch_wal(); CHECKPOINT")
        server.stop()
        site.end()
        for volume in site.volumes:
            shutil.copytree(volume.data, volume.root / "pristine", symlinks=True, copy_function=_copy)
            _take_owners(volume.data, volume.root / "pristine")
        yield site
    finally:
        workspace.release(volumes, servers)


def _copy(source: str, to: str, *, follow_symlinks: bool = True) -> None:
    shutil.copy2(source, to, follow_symlinks=follow_symlinks)


def _take_owners(source: Path, to: Path) -> None:
    for path in [source, *source.rglob("*")]:
        status = path.lstat()
        os.chown(to / path.relative_to(source), status.st_uid, status.st_gid, follow_symlinks=False)


@pytest.fixture
def site(made: Site) -> Iterator[Site]:
    """The cluster as it was made; nothing is mounted."""
    yield made
    made.end()
    for volume in made.volumes:
        shutil.rmtree(volume.data)
        shutil.copytree(volume.root / "pristine", volume.data, symlinks=True)
        _take_owners(volume.root / "pristine", volume.data)
    for path in made.loot.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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
    done = site.server.run(
        *("pg_ctl", "start", "-w", "-t", "30", "-D", site.server.pgdata, "-l", site.server.log), check=False
    )
    if done.returncode == 0:
        site.server.run("psql", "-X", "-c", "SELECT pg_switch_wal()", "postgres", check=False)
        words = f"INSERT INTO t SELECT '{SECRET}' FROM generate_series(1, 180000)"
        site.server.run("psql", "-X", "-c", words, "postgres", check=False)
    assert not site.wrote(SECRET)
    assert site.data.log.read_text().count("the symbolic link was not made by tdefs") >= 1
    # whoever has read the findings removes them, and all is well
    if site.server.is_running:
        site.server.stop("immediate")
    site.remove(*recycled)
    assert (site.server.pgdata / "pg_wal" / used).exists()
    site.server.start()
    site.server.psql(f"INSERT INTO t SELECT '{SECRET}' FROM generate_series(1, 180000)")
    site.server.stop()
    assert not site.wrote(SECRET)


def test_pg_hba_conf_that_was_replaced_by_a_link_lets_nobody_in(site: Site) -> None:
    site.replace_by_link("pg_hba.conf", site.plain("hba", b"local all all trust\nhost all all all trust\n"))
    site.assert_found("pg_hba.conf")
    assert "could not load" in site.refuses_to_start()
    assert "pg_hba.conf: the symbolic link was not made by tdefs" in site.data.log.read_text()


@pytest.mark.parametrize("name", ["postgresql.auto.conf", "postgresql.conf"])
def test_settings_that_were_replaced_by_a_link_run_nothing(site: Site, name: str) -> None:
    touched = site.loot / "executed"
    evil = f"archive_mode = on\narchive_command = 'touch {touched}'\nport = {site.server.port}\n"
    evil += f"unix_socket_directories = '{site.server.socket_directory}'\nlisten_addresses = ''\n"
    site.replace_by_link(name, site.plain("conf", evil.encode()))
    site.assert_found(name)
    site.mount()
    words = ("pg_ctl", "start", "-w", "-t", "30", "-D", site.server.pgdata, "-l", site.server.log)
    if site.server.run(*words, check=False).returncode == 0:
        # PostgreSQL goes on without postgresql.auto.conf
        assert site.server.psql("SHOW archive_mode") == "off"
        site.server.psql("SELECT pg_switch_wal()")
        time.sleep(1)
    assert not touched.exists()


def test_a_directory_that_was_replaced_by_a_link_takes_no_rows_in_the_clear(site: Site) -> None:
    outside = site.loot / "base"
    (site.data.data / "base").rename(outside)
    (site.data.data / "base").symlink_to(outside)
    site.assert_found("base")
    site.mount()
    words = ("pg_ctl", "start", "-w", "-t", "30", "-D", site.server.pgdata, "-l", site.server.log)
    site.server.run(*words, check=False)
    assert site.server.run("psql", "-X", "-c", "SELECT v FROM t", "postgres", check=False).returncode != 0


def _plant(site: Site) -> list[str]:
    path = f"pg_tblspc/{site.oids[0]}"
    outside = site.loot / "space"
    shutil.copytree(site.spaces[0].data, outside)
    _take_owners(site.spaces[0].data, outside)
    site.replace_by_link(path, outside)
    return [path]


def _swap(site: Site) -> list[str]:
    one, two = (site.data.data / "pg_tblspc" / oid for oid in site.oids)
    texts = one.readlink(), two.readlink()
    for path, text in ((one, texts[1]), (two, texts[0])):
        path.unlink()
        path.symlink_to(text)
    return [f"pg_tblspc/{oid}" for oid in site.oids]


def _copy_over(site: Site) -> list[str]:
    one, two = (site.data.data / "pg_tblspc" / oid for oid in site.oids)
    text = two.readlink()
    one.unlink()
    one.symlink_to(text)
    return [f"pg_tblspc/{site.oids[0]}"]


def _hard_link_over(site: Site) -> list[str]:
    one, two = (site.data.data / "pg_tblspc" / oid for oid in site.oids)
    one.unlink()
    os.link(two, one, follow_symlinks=False)
    return [f"pg_tblspc/{oid}" for oid in site.oids]


@pytest.mark.parametrize("attack", [_plant, _swap, _copy_over, _hard_link_over])
def test_a_tablespace_whose_link_was_planted_or_moved_is_refused(
    site: Site, attack: Callable[[Site], list[str]]
) -> None:
    paths = attack(site)
    site.assert_found(*paths)
    site.mount()
    words = ("pg_ctl", "start", "-w", "-t", "30", "-D", site.server.pgdata, "-l", site.server.log)
    if site.server.run(*words, check=False).returncode == 0:
        for path in paths:
            number = site.oids.index(path.rpartition("/")[2])
            answer = site.server.run("psql", "-X", "-c", f"SELECT v FROM t{number}", "postgres", check=False)
            assert answer.returncode != 0
            assert "Input/output error" in answer.stderr
        site.server.run(
            "psql", "-X", "-c", f"CREATE TABLE n TABLESPACE s0 AS SELECT '{SECRET}' v", "postgres", check=False
        )
        site.server.run("psql", "-X", "-c", "CHECKPOINT", "postgres", check=False)
    assert not site.wrote(SECRET)
    for path in paths:
        assert f"{path}: the symbolic link" in site.data.log.read_text()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
@pytest.mark.parametrize("path", ["pg_hba.conf", "global/pg_control", "pg_xact/0000"])
def test_a_node_in_the_place_of_a_file_is_refused_and_holds_nobody(site: Site, kind: str, path: str) -> None:
    place = site.data.data / path
    status = place.stat()
    place.unlink()
    modes = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}
    os.mknod(place, modes[kind] | 0o600, os.makedev(1, 5))
    os.chown(place, status.st_uid, status.st_gid)
    site.assert_found(path)
    site.refuses_to_start()
    assert f"{path}: a FIFO, socket or device lies in the backing directory" in site.data.log.read_text()
    assert json.loads(site.data.tdefs("status", site.data.mountpoint, "--json").stdout)["daemon_answers"]
    assert Path(path).name in os.listdir((site.server.pgdata / path).parent)
    site.remove(path)
    assert not place.exists()


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
    words = ("pg_ctl", "start", "-w", "-t", "30", "-D", site.server.pgdata, "-l", site.server.log)
    if site.server.run(*words, check=False).returncode != 0:
        return False
    site.server.stop()
    return True


def test_tablespaces_survive_moves_backups_and_renames(site: Site, workspace: Workspace) -> None:
    """What a DBA does with links: all of it works on sealed ones, and what lists them tells where they lead to."""
    site.start()
    links = {oid: (site.server.pgdata / "pg_tblspc" / oid).readlink() for oid in site.oids}
    assert list(links.values()) == [space.mountpoint for space in site.spaces]
    # a backup through the mount, with its tablespaces elsewhere
    target = workspace.data_directory("backup")
    maps: list[str] = []
    for number, space in enumerate(site.spaces):
        to = workspace.data_directory(f"space{number}")
        maps += ["-T", f"{space.mountpoint}={to}"]
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
    server.initdb("--no-sync", "-X", str(wal.mountpoint))
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
    # without a secret nobody can tell
    assert "-> (sealed)" in data.tdefs("ls", data.backing).stdout
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

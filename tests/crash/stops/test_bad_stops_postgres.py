"""Stopped at the wrong time under a running PostgreSQL: it goes on, and every acknowledged commit is there."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.crash.conftest import Dice
from tests.crash.ledger import Ledger
from tests.crash.stops.test_bad_stops import has_ended, left_clean, suspended_seconds
from tests.support.processes import is_alive, is_postgres, processes_in, send, wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace


@pytest.fixture
def server(scratch: Workspace, volume: Volume) -> Server:
    """A server on a mount."""
    volume.mount(owner=scratch.account)
    server = scratch.server("15", volume.mountpoint)
    server.initdb()
    server.configure({"shared_buffers": "32MB", "checkpoint_timeout": "30s"})
    server.start()
    return server


@pytest.fixture
def ledger(server: Server) -> Ledger:
    """What clients are told was committed."""
    ledger = Ledger()
    ledger.set_up(server)
    return ledger


def commits_go_on(ledger: Ledger) -> bool:
    before = ledger.commits
    return wait_until(lambda: ledger.commits > before + 20, 60)


@pytest.mark.slow
def test_a_daemon_that_is_told_to_end_under_postgres_stays_until_that_has_stopped(
    server: Server, volume: Volume, ledger: Ledger, dice: Dice
) -> None:
    (daemon,) = volume.daemons
    with ledger.clients(server, "checkpoints", dice.random()):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            send(daemon, number)
        assert wait_until(lambda: "cannot end yet" in volume.log.read_text(), 30)
        assert "postgres (process " in volume.log.read_text()
        done = volume.tdefs("umount", volume.mountpoint, check=False)
        assert done.returncode == Exit.MOUNT_BUSY
        assert "postgres (process " in done.stderr
        assert commits_go_on(ledger)
    assert is_alive(daemon)
    # not by pg_ctl, which waits for what it sees in the mount, and finds it gone
    send(int((server.pgdata / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
    assert has_ended(daemon), volume.log_tail()
    assert not volume.is_mounted
    assert left_clean(volume)
    assert [line for line in volume.complaints() if "cannot end yet" not in line] == []
    volume.mount()
    server.run("pg_checksums", "--check", "-D", server.pgdata)
    server.start()
    ledger.check(server)


@pytest.mark.slow
def test_postgres_goes_on_after_its_daemon_was_suspended_and_comes_back_after_it_was_killed_then(
    server: Server, volume: Volume, ledger: Ledger, dice: Dice
) -> None:
    (daemon,) = volume.daemons
    with ledger.clients(server, "checkpoints", dice.random()):
        assert commits_go_on(ledger)
        send(daemon, signal.SIGSTOP)
        try:
            time.sleep(suspended_seconds(dice))
        finally:
            send(daemon, signal.SIGCONT)
        assert commits_go_on(ledger)
    ledger.check(server)
    said = server.log.read_text().splitlines()
    assert [line for line in said if any(word in line for word in ("ERROR", "FATAL", "PANIC"))] == []
    assert volume.complaints() == []
    processes = [pid for pid in processes_in(server.pgdata) if is_postgres(pid)]
    with ledger.clients(server, "checkpoints", dice.random(1)):
        assert commits_go_on(ledger)
        send(daemon, signal.SIGSTOP)
        time.sleep(1)
        ledger.expect_death()
        send(daemon, signal.SIGKILL)
        assert has_ended(daemon)
        server.discard()
    # a zombie, too, would be taken for a live server
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 60)
    volume.mount()
    server.start()
    ledger.check(server)
    server.stop()
    volume.umount()
    volume.tdefs("verify", volume.backing, *volume.unlock)


#: Each weakens durability. What is written in a file holds once the server has read it.
WEAK = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "data_sync_retry": "on",
    "ignore_checksum_failure": "on",
    "zero_damaged_pages": "on",
    "recovery_init_sync_method": "syncfs",
}


def diagnose(volume: Volume) -> list[str]:
    """The risks that the doctor finds."""
    done = volume.tdefs("doctor", volume.mountpoint, "--json", check=False)
    risks = [finding["what"] for finding in json.loads(done.stdout) if finding["level"] == "risk"]
    assert done.returncode == (Exit.DOCTOR_FOUND_RISKS if risks else Exit.OK)
    return risks


@pytest.mark.slow
def test_the_doctor_finds_each_weak_setting_of_a_running_server(server: Server, volume: Volume) -> None:
    assert diagnose(volume) == []
    for method in ("fdatasync", "fsync", "open_sync", "open_datasync"):
        server.psql(f"ALTER SYSTEM SET wal_sync_method = {method}")
        server.psql("SELECT pg_reload_conf()")
        assert diagnose(volume) == [], "any method of Linux is as durable"
    for name, value in WEAK.items():
        server.psql(f"ALTER SYSTEM SET {name} = {value}")
    server.stop()
    server.start()
    for name, value in WEAK.items():
        assert server.psql(f"SHOW {name}") == value
    risks = diagnose(volume)
    assert len(risks) == len(WEAK), risks
    for name, value in WEAK.items():
        assert any(what.startswith(f"{name} = {value} (") and "postgresql.auto.conf" in what for what in risks)
    server.psql("ALTER SYSTEM RESET ALL")
    server.stop()
    # what the command line says, and checksums
    server.run("pg_checksums", "--disable", "-D", server.pgdata)
    server.run("pg_ctl", "start", "-w", "-D", server.pgdata, "-l", server.log, "-o", "-F")
    assert server.psql("SHOW fsync") == "off"
    assert server.psql("SHOW data_checksums") == "off"
    risks = diagnose(volume)
    assert len(risks) == 2, risks
    assert any(what.startswith("fsync = off (the command line") for what in risks)
    assert any("no data checksums" in what for what in risks)
    # what is set for a role is in no file: it says where to look
    server.psql("ALTER ROLE postgres SET synchronous_commit = off")
    assert diagnose(volume) == risks
    assert "psql's \\drds" in volume.tdefs("doctor", volume.mountpoint, check=False).stdout

"""PostgreSQL bound to its volume by conf/tdefs@.service and conf/postgresql-tdefs.conf, under a real systemd."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.children import needs_root
from tests.support.processes import wait_until
from tests.support.workspace import Workspace
from tests.systemd.machine import REPOSITORY, Machine, booted

pytestmark = [pytest.mark.slow, needs_root]

TDEFS = "tdefs@main.service"
SERVER = "postgresql@15-main.service"


def rows(machine: Machine) -> str:
    """How many rows there are, once the server answers and its unit is active, which takes a little longer."""
    answer = machine.wait_for_sql("SELECT count(*) FROM kept")
    assert wait_until(lambda: machine.show(SERVER, "ActiveState") == "active", 30)
    return answer


@pytest.fixture(scope="module")
def srv(workspace: Workspace) -> Path:
    """What the machine has as /srv/tdefs."""
    return workspace.directory("srv")


@pytest.fixture(scope="module")
def machine(workspace: Workspace, srv: Path) -> Iterator[Machine]:
    """A machine where both units were enabled, and started at boot."""
    with booted(workspace.directory("machine"), srv) as made:
        made.wait_for_sql("CREATE TABLE kept AS SELECT generate_series(1, 1000)")
        rows(made)
        yield made


@pytest.fixture(autouse=True)
def state_of_failure(request: pytest.FixtureRequest, machine: Machine) -> Iterator[None]:
    """What a failed test needs to be understood, and time for as many starts as each test makes."""
    machine.systemctl("reset-failed")
    yield
    if not machine.is_on:
        return
    print(machine.run("systemctl", "--no-pager", "status", TDEFS, SERVER, check=False))
    print(machine.journal("--lines=60"))


def daemon_of(machine: Machine) -> str:
    return machine.show(TDEFS, "MainPID")


def is_active_on_a_dead_mount(machine: Machine) -> bool:
    """What must not last: the server's unit is active, and its data directory cannot be read."""
    return machine.show(SERVER, "ActiveState") == "active" and "PG_VERSION" not in machine.run(
        "ls", "/srv/postgresql/15/main", check=False
    )


def last_line_of_the_server(machine: Machine) -> str:
    return machine.run("tail", "-n1", "/var/log/postgresql/postgresql-15-main.log")


def test_postgresql_runs_on_the_mount_after_boot(machine: Machine) -> None:
    assert rows(machine) == "1000"
    for unit in (TDEFS, SERVER):
        assert machine.show(unit, "ActiveState") == "active"
    assert machine.run("findmnt", "-no", "FSTYPE", "--target", "/srv/postgresql/15/main") == "fuse.tdefs"
    assert machine.run("systemctl", "is-system-running") == "running"


@pytest.mark.parametrize("how", ["KILL", "STOP"])
def test_when_the_daemon_is_killed_or_frozen_postgresql_comes_back_with_all_commits(
    machine: Machine, how: str
) -> None:
    """The daemon that is stopped is ended by its watchdog."""
    machine.wait_for_sql("CREATE TABLE IF NOT EXISTS late (how text)")
    machine.wait_for_sql(f"INSERT INTO late VALUES ('{how}')")
    before = machine.show(SERVER, "MainPID"), daemon_of(machine)
    machine.run("kill", f"-{how}", before[1])
    begun = time.monotonic()
    assert wait_until(
        lambda: (
            machine.show(SERVER, "MainPID") not in ("0", before[0]) and daemon_of(machine) not in ("0", before[1])
        ),
        40,
    ), "it does not come back"
    assert rows(machine) == "1000"
    assert machine.sql(f"SELECT count(*) FROM late WHERE how = '{how}'") == "1"
    print(f"PostgreSQL was back after {time.monotonic() - begun:.1f} s")
    assert machine.show(TDEFS, "ActiveState") == machine.show(SERVER, "ActiveState") == "active"
    assert not is_active_on_a_dead_mount(machine)
    assert machine.show(TDEFS, "NRestarts") == "1"
    # what there was is in no process any more
    assert machine.run("sh", "-c", f"kill -0 {before[0]} 2>&1 || true") != ""
    if how == "STOP":
        assert "has not answered for 3 s" in machine.journal(f"--unit={TDEFS}")


def test_where_the_daemon_is_not_started_again_postgresql_is_stopped(machine: Machine) -> None:
    extra = f"/run/systemd/system/{TDEFS}.d"
    machine.run("sh", "-c", f"mkdir {extra} && printf '[Service]\\nRestart=no\\n' >{extra}/no.conf")
    machine.systemctl("daemon-reload")
    machine.wait_for_sql("CHECKPOINT")
    machine.run("kill", "-KILL", daemon_of(machine))
    assert wait_until(lambda: machine.show(SERVER, "ActiveState") in ("inactive", "failed"), 20)
    assert machine.show(TDEFS, "ActiveState") == "failed"
    assert "Stopping" in machine.journal(f"--unit={SERVER}", "--lines=3"), "it has ended by itself"
    machine.run("rm", "-r", extra)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", TDEFS)
    assert rows(machine) == "1000"


def test_a_wrong_secret_is_tried_once_and_leaves_postgresql_stopped(machine: Machine) -> None:
    """Neither does it run on the dead mount, nor on the directory below, in the clear."""
    secret = "/etc/tdefs/main.passphrase"
    machine.run("mv", secret, f"{secret}.kept")
    try:
        machine.run("sh", "-c", f"umask 077; echo wrong >{secret}")
        machine.run("kill", "-KILL", daemon_of(machine))
        assert wait_until(lambda: machine.show(TDEFS, "ExecMainStatus") == str(Exit.WRONG_SECRET.value), 30)
        time.sleep(3)  # the next try would come after two
        assert machine.show(TDEFS, "ActiveState") == "failed"
        assert machine.show(TDEFS, "NRestarts") == "1", "that is the one after the daemon was killed"
        assert machine.show(SERVER, "ActiveState") in ("inactive", "failed")
        assert "Dependency failed" in machine.run("systemctl", "start", SERVER, check=False) + machine.journal(
            "-n9"
        )
        assert machine.sql("SELECT 1") is None
    finally:
        machine.run("mv", f"{secret}.kept", secret)
    machine.systemctl("start", TDEFS)
    assert rows(machine) == "1000"


def test_systemctl_reload_has_the_mount_use_a_changed_policy_once_it_is_accepted(
    machine: Machine, srv: Path
) -> None:
    policy = "/etc/tdefs/policy.yaml"
    serving = daemon_of(machine), machine.show(SERVER, "MainPID")

    def is_plain(name: str) -> bool:
        """Makes a configuration file of the cluster; returns whether it is in the clear on the disk."""
        machine.run("sh", "-c", f"echo a secret >/srv/postgresql/15/main/{name} && sync")
        return b"a secret" in (srv / "main/data/main" / name).read_bytes()

    accept = ["tdefs", "policy", "accept", "--volume", "/srv/tdefs/main", "--yes"]
    machine.systemctl("reload", TDEFS)
    assert not is_plain("before.conf")
    machine.run("sh", "-c", f"printf 'version: 1\\nkinds: {{configuration: plain}}\\n' >{policy}")
    machine.run(*accept, "--policy", policy)
    assert not is_plain("accepted.conf")
    machine.systemctl("reload", TDEFS)
    assert is_plain("reloaded.conf")

    # a change that nobody accepted: the reload fails, and the mount goes on with the old policy
    machine.run("sh", "-c", f"printf 'version: 1\\nkinds: {{configuration: plain, log: plain}}\\n' >{policy}")
    assert "failed" in machine.run("systemctl", "reload", TDEFS, check=False)
    assert "was not accepted" in machine.journal(f"--unit={TDEFS}", "--lines=20")
    assert not is_plain("server.log")
    assert is_plain("refused.conf")

    machine.run(*accept, "--no-policy")
    machine.systemctl("reload", TDEFS)
    assert not is_plain("after.conf")
    machine.run("rm", policy)
    for name in ("before.conf", "accepted.conf", "reloaded.conf", "server.log", "refused.conf", "after.conf"):
        machine.run("rm", f"/srv/postgresql/15/main/{name}")
    assert (daemon_of(machine), machine.show(SERVER, "MainPID")) == serving
    assert machine.show(TDEFS, "ActiveState") == "active"
    assert rows(machine) == "1000"


def test_stopping_the_volume_stops_postgresql_first_and_ends_clean(machine: Machine, srv: Path) -> None:
    machine.systemctl("stop", TDEFS)
    assert machine.show(TDEFS, "Result") == machine.show(SERVER, "Result") == "success"
    assert json.loads((srv / "main/.tdefs/session.json").read_text())["clean"]
    assert "database system is shut down" in last_line_of_the_server(machine)
    assert machine.run("findmnt", "-t", "fuse.tdefs", check=False) == ""
    time.sleep(3)  # what was stopped on purpose stays so
    assert machine.show(TDEFS, "ActiveState") == machine.show(SERVER, "ActiveState") == "inactive"


def test_a_volume_that_another_process_has_for_a_moment_is_tried_again(machine: Machine) -> None:
    """PostgreSQL, which was asked for, waits for it and starts then."""
    lock = "/srv/tdefs/main/.tdefs"
    machine.run("systemd-run", "--quiet", "--unit=holder", "flock", lock, "sleep", "infinity")
    try:
        machine.run("systemctl", "start", SERVER, check=False)
        assert wait_until(lambda: machine.show(TDEFS, "ExecMainStatus") == str(Exit.VOLUME_IN_USE.value), 10)
    finally:
        machine.systemctl("stop", "holder")
    assert rows(machine) == "1000"


def test_leaving_as_the_document_tells_gives_the_same_cluster_in_the_clear(machine: Machine) -> None:
    """Run as written; then it comes back, for the volume still has what it had."""
    kept = f"/etc/systemd/system/{SERVER}.d"
    text = (REPOSITORY / "docs" / "OPERATING.md").read_text().partition("\n## Leaving tdefs\n")[2]
    commands = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    assert commands.startswith("pg_ctlcluster 15 main stop &&\n")
    machine.run("cp", "-a", kept, "/root/kept")
    machine.run("bash", "-euc", commands)
    assert rows(machine) == "1000"
    assert machine.run("findmnt", "-t", "fuse.tdefs", check=False) == ""
    assert machine.show(TDEFS, "ActiveState") == "inactive"

    machine.systemctl("stop", SERVER)
    machine.run("mv", "/srv/postgresql/15", "/srv/postgresql/15.plain")
    machine.run("mkdir", "/srv/postgresql/15")
    machine.run("cp", "-a", "/root/kept/.", kept)
    machine.systemctl("daemon-reload")
    machine.systemctl("--quiet", "enable", "--now", TDEFS)
    assert rows(machine) == "1000"


def test_a_daemon_of_a_user_of_its_own_as_the_document_tells(machine: Machine, srv: Path) -> None:
    """Run as written, for a second volume."""
    text = (REPOSITORY / "docs" / "OPERATING.md").read_text().partition("\n**A user of its own.**")[2]
    block = text.partition("\n    ")[2].partition("\n\n")[0]
    commands = "\n".join(line.strip() for line in block.splitlines()).replace("main", "second")
    assert "useradd" in commands
    settings = "{options: [allow_other], passphrase_file: /etc/tdefs/second/passphrase}"
    described = f"""
        printf 'BACKING=/srv/tdefs/second\\nMOUNTPOINT=/srv/second\\n' >/etc/tdefs/second.env
        sed -i 's|^volumes:|&\\n  /srv/tdefs/second: {settings}|' /etc/tdefs/tdefs.yaml
        cd {REPOSITORY}
    """
    machine.run("bash", "-euc", described + commands)
    unit = "tdefs@second.service"
    try:
        machine.run("runuser", "-u", "postgres", "--", "sh", "-c", "umask 077; echo kept >/srv/second/file")
        assert machine.run("stat", "-c", "%U %a", "/srv/tdefs/second/data/file") == "postgres 600"
        assert machine.run("stat", "-c", "%U %a", "/srv/tdefs/second") == "tdefs 700"
        status = machine.run("cat", f"/proc/{machine.show(unit, 'MainPID')}/status")
        user = machine.run("id", "-u", "tdefs")
        assert f"Uid:\t{user}\t" in status
        locked = next(line for line in status.splitlines() if line.startswith("VmLck"))
        assert int(locked.split()[1]) > 1024
        read = ["cat", f"/proc/{machine.show(unit, 'MainPID')}/environ"]
        assert "Permission denied" in machine.run("runuser", "-u", "postgres", "--", *read, check=False)
    finally:
        machine.systemctl("stop", unit)
    assert machine.show(unit, "Result") == "success"
    assert json.loads((srv / "second/.tdefs/session.json").read_text())["clean"]


def test_power_off_stops_postgresql_then_unmounts(machine: Machine, srv: Path) -> None:
    machine.power_off()
    assert json.loads((srv / "main/.tdefs/session.json").read_text())["clean"]

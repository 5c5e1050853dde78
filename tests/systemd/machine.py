"""A systemd with a process 1, a root directory and a control group of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.mounts import detach
from tests.support.processes import is_alive, wait_until

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
LIMIT = 60
_numbers = itertools.count()


class Machine:
    """A machine that has booted; commands are run in it as its root."""

    def __init__(self, init: int) -> None:
        self._init = init

    @property
    def is_on(self) -> bool:
        return is_alive(self._init)

    def run(self, *words: str | Path, check: bool = True) -> str:
        """Runs a command; returns what it said."""
        command = ["nsenter", f"--target={self._init}", "--all", *map(str, words)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert not check or done.returncode == 0, (
            f"{words}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.journal()}"
        )
        return (done.stdout + done.stderr).strip()

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", *words, check=False)

    def sql(self, sql: str) -> str | None:
        """The answer of PostgreSQL, None if there is none."""
        psql = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "psql", "-XqAt", "-c", sql]
        said = self.run("timeout", "20", *psql, "postgres", check=False)
        return None if "error:" in said or "FATAL" in said else said

    def wait_for_sql(self, sql: str, seconds: float = LIMIT) -> str:
        """The answer of PostgreSQL, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while (answer := self.sql(sql)) is None:
            assert time.monotonic() < deadline, f"no answer\n{self.journal('--lines=80')}"
            time.sleep(0.2)
        return answer

    def power_off(self) -> None:
        """Returns when it is off."""
        self.run("systemctl", "poweroff", check=False)
        assert wait_until(lambda: not self.is_on, LIMIT), "it does not end"


@contextmanager
def booted(directory: Path, backing: Path) -> Iterator[Machine]:
    """A machine with ``backing`` as its /srv/tdefs; at the end nothing of it is left.

    :param directory: an empty one
    """
    # wherever this machine has it, and however: read-only in a container, beside older ones on another
    groups = directory.with_name(f"{directory.name}-groups")
    groups.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", groups], check=True)
    group = groups / f"tdefs-test-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    log = backing / "boot.log"
    try:
        with log.open("w") as output:
            boot = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', group),
                    *("unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child"),
                    *("bash", HERE / "boot.sh", directory, backing, REPOSITORY, HERE / "prepare.sh"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            try:
                yield Machine(_process_1(boot, log))
            finally:
                with suppress(OSError):
                    (group / "cgroup.kill").write_text("1")
                boot.wait(LIMIT)
    finally:
        wait_until(lambda: _is_removed(group), 10)
        detach(groups)
        groups.rmdir()


def _process_1(boot: subprocess.Popen[bytes], log: Path) -> int:
    """Waits until the machine has booted; returns its process 1, as it is numbered here."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and boot.poll() is None:
        children = Path(f"/proc/{boot.pid}/task/{boot.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                machine = Machine(int(child))
                state = machine.run("systemctl", "is-system-running", check=False)
                if state in ("running", "degraded"):
                    return int(child)
        time.sleep(0.1)
    raise AssertionError(f"it does not boot\n{log.read_text(errors='replace')}")


def _is_removed(group: Path) -> bool:
    """Removes a control group and those in it, once their processes have ended."""
    for parent, directories, _ in os.walk(group, topdown=False):
        for name in directories:
            with suppress(OSError):
                Path(parent, name).rmdir()
    with suppress(OSError):
        group.rmdir()
    return not group.exists()

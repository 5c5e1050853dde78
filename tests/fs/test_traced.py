"""A process that traces tdefs sees all its memory: with one attached, no secret is read or asked for.

Covers refuse_tracer() and harden_process() of tdefs/host.py.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.fs.tracer import trace
from tests.support.account import Account
from tests.support.children import in_child, needs_root
from tests.support.processes import wait_until
from tests.support.terminal import Terminal
from tests.support.volume import LIMIT, TDEFS, Volume
from tests.support.workspace import Workspace

_ROUNDS = 60


class Place:
    """A volume of the cluster's user, and whether its key command has run: it leaves a file."""

    def __init__(self, scratch: Workspace) -> None:
        self.account: Account = scratch.account
        self.volume: Volume = scratch.volume("traced")
        self.asked = self.volume.root / "asked"
        for path in (self.volume.root, *self.volume.root.iterdir()):
            self.account.own(path)
        self.run("init", self.volume.backing, *self.volume.unlock, "--keystore", self.volume.keystore)

    @property
    def words(self) -> list[str | Path]:
        """A command that unlocks the keystore."""
        command = f": >'{self.asked}'; cat '{self.volume.key_file}'"
        return [TDEFS, "key", "verify", "--volume", self.volume.backing, "--key-command", command]

    def become_user(self) -> None:
        if not self.account.is_caller:
            os.setgroups([self.account.gid])
            os.setresgid(self.account.gid, self.account.gid, self.account.gid)
            os.setresuid(self.account.uid, self.account.uid, self.account.uid)

    def run(self, *words: str | Path) -> None:
        subprocess.run(
            self.account.command(TDEFS, *words), stdin=subprocess.DEVNULL, cwd="/", timeout=LIMIT, check=True
        )


@pytest.fixture
def place(scratch: Workspace) -> Place:
    return Place(scratch)


def test_with_a_tracer_from_the_first_instruction_on_no_secret_is_asked_for(place: Place) -> None:
    course = trace(place.words, as_user=place.become_user)
    assert course.attached, "the test is one only if attaching works"
    assert course.code == Exit.PROCESS_TRACED
    assert not place.asked.exists()


def test_a_tracer_that_attaches_at_any_moment_comes_too_late_or_is_noticed(place: Place) -> None:
    """In a loop, as an attacker of the same user would; which of both happens is the machine's speed."""
    began = time.monotonic()
    place.run(*place.words[1:])
    whole = time.monotonic() - began
    ends = []
    for number in range(_ROUNDS):
        place.asked.unlink(missing_ok=True)
        moment = whole * number / _ROUNDS
        course = trace(place.words, when=partial(time.sleep, moment), as_user=place.become_user)
        ends.append((course.attached, course.code, place.asked.exists()))
    assert set(ends) <= {(True, int(Exit.PROCESS_TRACED), False), (False, 0, True)}, ends
    assert len(set(ends)) == 2, f"all rounds ended in one way: {ends[0]}"


@needs_root
def test_a_tracer_of_root_that_comes_while_the_secret_is_fetched_gets_no_daemon(volume: Volume) -> None:
    """Nothing keeps it from attaching; that much it has seen, but the keys of a database stay no longer."""
    asked = volume.root / "asked"
    command = f": >'{asked}'; sleep 2; cat '{volume.key_file}'"
    words: list[str | Path] = [
        TDEFS,
        "mount",
        volume.backing,
        volume.mountpoint,
        "--key-command",
        command,
        "--log-file",
        volume.log,
    ]
    course = trace(words, when=lambda: wait_until(asked.exists, LIMIT))
    assert (course.attached, course.code) == (True, Exit.PROCESS_TRACED)
    assert not volume.is_mounted
    assert not volume.daemons


def test_a_traced_command_says_who_traces_it_and_asks_nothing_on_the_terminal(place: Place) -> None:
    strace = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.fs.tracer import _ptrace, _SEIZE, _continue_until_end
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.read(reading, 1)
    os.execv(sys.argv[1], sys.argv[1:])
assert _ptrace(_SEIZE, child)
os.write(writing, b"+")
print("tracer", os.getpid(), flush=True)
sys.exit(_continue_until_end(child))
"""
    words: list[str | Path] = [TDEFS, "key", "verify", "--volume", place.volume.backing]
    with Terminal([sys.executable, "-c", strace, *map(str, words)]) as terminal:
        code, _ = terminal.end()
        assert code == Exit.PROCESS_TRACED, terminal.shown
        assert "assphrase" not in terminal.shown
        found = re.search(r"tracer (\d+)", terminal.shown)
        assert found
        assert f"process {found[1]} traces this one" in terminal.shown
        assert "HINT" in terminal.shown


def test_the_memory_of_a_command_is_closed_to_its_user_while_it_gets_its_secret(place: Place) -> None:
    def look(pid: int) -> dict[str, int]:
        seen = {}
        for name in ("mem", "environ", "maps", "fd/0"):
            try:
                os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
                seen[name] = 0
            except OSError as error:
                seen[name] = error.errno or -1
        return seen

    pid_file = place.volume.root / "pid"
    command = f"echo $PPID >'{pid_file}.new'; mv '{pid_file}.new' '{pid_file}'; sleep 60"
    words: list[str | Path] = [TDEFS, "key", "verify", "--volume", place.volume.backing, "--key-command", command]
    with subprocess.Popen(place.account.command(*words), stdin=subprocess.DEVNULL, cwd="/") as process:
        try:
            assert wait_until(pid_file.exists, LIMIT)
            seen = _as(place, lambda: look(process.pid))
        finally:
            process.terminate()
    assert int(pid_file.read_text()) == process.pid
    assert set(seen.values()) == {errno.EACCES}, seen


def _as(place: Place, action: Callable[[], dict[str, int]]) -> dict[str, int]:
    return in_child(action, uid=None if place.account.is_caller else place.account.uid, gid=place.account.gid)

"""A key command hears every signal, whatever tdefs inherited: nohup, a shell's background and CI ignore some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.processes import is_alive, wait_until
from tests.support.signals import deaf, signals_of
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS
from tests.unit.cli.test_command_terminal import ASK, PROMPT, program
from tests.unit.keys.keystore_samples import KEY_HEX

MOST = "SIGINT SIGQUIT SIGHUP SIGTERM SIGPIPE SIGUSR1 SIGALRM SIGTSTP"
#: glibc's posix_spawn has these ignored until the program starts a thread.
GLIBC_OWN = {32, 33}

_RUN = """
import sys
from tdefs.keys.protectors.command_run import run_command
outcome = run_command(sys.argv[1], timeout_seconds=20, max_output_bytes=100_000)
print(outcome.status)
print(outcome.stdout.decode(), end="")
"""


def outcome(command: str, how: str, *, descriptors: tuple[int, ...] = ()) -> tuple[int, str]:
    """The status of a key command that is run by a process deaf to signals, and what it printed."""
    words = deaf(MOST, [sys.executable, "-c", _RUN, command], how=how)
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, pass_fds=descriptors)
    status, _, said = done.stdout.partition("\n")
    return int(status), said


@pytest.mark.parametrize("how", ["ignored", "blocked"])
@pytest.mark.parametrize("name", ["INT", "QUIT", "HUP", "TERM", "PIPE", "USR1"])
def test_it_ends_by_each_signal_that_its_caller_is_deaf_to(name: str, how: str) -> None:
    status, said = outcome(f"kill -{name} $$; sleep 0.2; echo {KEY_HEX}", how)
    assert (status, said) == (-signal.Signals[f"SIG{name}"], "")


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_what_it_starts_hears_every_signal(how: str) -> None:
    _, said = outcome("cat /proc/self/status", how)
    assert signals_of(said, "SigIgn") <= GLIBC_OWN
    assert signals_of(said, "SigBlk") == set()


def test_it_gets_none_of_the_descriptors_that_its_caller_left_open() -> None:
    reading, writing = os.pipe()
    try:
        _, said = outcome("ls /proc/$$/fd", "ignored", descriptors=(reading, writing))
    finally:
        os.close(reading)
        os.close(writing)
    assert said.split() == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_one_that_failed_is_not_taken_for_one_that_did_well(how: str, tmp_path: Path) -> None:
    (tmp_path / "backing").mkdir()
    words = [str(TDEFS), "init", str(tmp_path / "backing"), "--key-command", f"echo {KEY_HEX}; exit 3"]
    command = deaf(f"{MOST} SIGCHLD", words, how=how)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == Exit.KEY_COMMAND_FAILED, done.stderr
    assert "3" in done.stderr


@pytest.mark.parametrize("key", ["\x03", "\x1c"], ids=["Ctrl-C", "Ctrl-backslash"])
def test_who_is_asked_on_the_terminal_can_say_no_where_the_keys_were_ignored(key: str, tmp_path: Path) -> None:
    command = deaf("SIGINT SIGQUIT SIGHUP", program(f"echo $$ > {tmp_path}/pid; {ASK}"))
    with Terminal(command) as terminal:
        terminal.expect(PROMPT)
        terminal.press(key)
        code, echo = terminal.end()
    assert code in (-signal.SIGINT, -signal.SIGQUIT)
    assert echo
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(pid), 10), f"the key command {pid} still runs"

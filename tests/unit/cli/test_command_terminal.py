"""The promises of %R: a key command asks on the terminal, which comes back as it was, however that ends."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.processes import is_alive, wait_until
from tests.support.terminal import Terminal
from tests.unit.keys.keystore_samples import KEY_HEX

ASK = 'stty -echo <&%R; printf %%s "%p" >&%R; read -r key <&%R; '
PROMPT = 'Secret for the keystore "/k": '

_PROGRAM = """
import sys
from pathlib import Path
from tdefs.cli.common.terminal import lent_terminal
from tdefs.errors import TdefsError
from tdefs.host import harden_process
from tdefs.keys.protectors.command import KeyCommand
harden_process()
timeout = float(sys.argv[2])
try:
    key = KeyCommand(sys.argv[1], Path("/k"), lend_terminal=lent_terminal, timeout_seconds=timeout).read_key()
    print("got", key[::-1].hex())
except TdefsError as error:
    print(error.message)
    sys.exit(int(error.exit_code))
"""
GOT = "got " + bytes.fromhex(KEY_HEX)[::-1].hex()


def program(command: str, timeout: float = 60) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, command, str(timeout)]


def on_terminal(
    command: str, timeout: float = 60, *, mode: str = "foreground", env: Mapping[str, str] | None = None
) -> Terminal:
    return Terminal(program(command, timeout), mode=mode, env=env)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_command_reads_from_the_terminal_without_echo(shell: str) -> None:
    inner = 'stty -echo <&"$1"; printf %%s "$2" >&"$1"; read -r key <&"$1"; echo "$key"'
    command = f'{shell} -c {shlex.quote(inner)} "{shell}" %R "%p"'
    with on_terminal(command) as terminal:
        terminal.expect(PROMPT)
        terminal.press(f"{KEY_HEX}\n")
        terminal.expect(GOT)
        assert terminal.end() == (0, True)
        assert KEY_HEX not in terminal.shown


def test_command_without_the_placeholder_has_no_terminal() -> None:
    probe = "(: < /dev/tty) 2> /dev/null && exit 3; for fd in 0 1 2 3 4 5 6 7 8 9; do [ -t $fd ] && exit 4; done; "
    command = f"{probe} echo {KEY_HEX}"
    with on_terminal(command) as terminal:
        terminal.expect(GOT)


def test_descriptor_has_one_digit_because_dash_knows_no_others() -> None:
    with on_terminal(f"case %R in [3-9]) echo {KEY_HEX};; esac") as terminal:
        terminal.expect(GOT)
        assert terminal.end() == (0, True)


def test_without_a_free_descriptor_of_one_digit_the_reason_is_told() -> None:
    shell = "exec " + " ".join(f"{number}</dev/null" for number in range(3, 10)) + "; exec "
    with Terminal(["sh", "-c", shell + shlex.join(program(ASK))]) as terminal:
        terminal.expect("no file descriptor for %R")
        assert terminal.end() == (Exit.NO_SECRET, True)


def test_without_a_terminal_the_reason_is_told() -> None:
    with Terminal(["setsid", "--wait", *program(ASK)]) as terminal:
        terminal.expect("there is no terminal that the key command could ask on")
        assert terminal.end() == (Exit.NO_SECRET, True)


def test_job_in_the_background_waits_for_the_foreground_instead_of_taking_what_the_shell_reads() -> None:
    with on_terminal(ASK + 'echo "$key"', mode="background") as terminal:
        terminal.expect("<stopped>")
        terminal.expect(PROMPT)
        terminal.press(f"{KEY_HEX}\n")
        terminal.expect(GOT)
        assert terminal.end() == (0, True)


def test_echo_is_back_and_nothing_runs_after_a_timeout(tmp_path: Path) -> None:
    with on_terminal(f"echo $$ > {tmp_path}/pid; {ASK}", timeout=1.5) as terminal:
        terminal.expect(PROMPT)
        terminal.press("half a sec")
        terminal.expect(r"did not finish within 1\.5 seconds")
        assert terminal.end() == (Exit.KEY_COMMAND_FAILED, True)
        assert "half a sec" not in terminal.shown
    assert_ended(tmp_path / "pid")


def test_secret_that_the_command_did_not_read_in_time_is_not_left_to_the_shell() -> None:
    with on_terminal('stty -echo <&%R; printf %%s "%p" >&%R; sleep 100', timeout=1.5) as terminal:
        terminal.expect(PROMPT)
        terminal.press("a secret\n")
        assert terminal.end() == (Exit.KEY_COMMAND_FAILED, True)
        assert terminal.unread == 0
        assert "secret\r" not in terminal.shown


@pytest.mark.parametrize("key", ["\x03", "\x1c"], ids=["Ctrl-C", "Ctrl-backslash"])
def test_echo_is_back_and_nothing_runs_after_an_interruption(key: str, tmp_path: Path) -> None:
    with on_terminal(f"echo $$ > {tmp_path}/pid; {ASK}") as terminal:
        terminal.expect(PROMPT)
        terminal.press(key)
        code, echo = terminal.end()
        assert code in (-signal.SIGINT, -signal.SIGQUIT)
        assert echo
    assert_ended(tmp_path / "pid")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_echo_is_back_and_nothing_runs_after_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    with on_terminal(f"echo $$ > {tmp_path}/pid; {ASK}") as terminal:
        terminal.expect(PROMPT)
        os.kill(terminal.job, number)
        assert terminal.end() == (-number, True)
    assert_ended(tmp_path / "pid")


def test_stopping_the_job_would_share_the_terminal_with_the_shell_and_does_nothing() -> None:
    with on_terminal(ASK + 'echo "$key"') as terminal:
        terminal.expect(PROMPT)
        terminal.press("\x1a")
        terminal.press(f"{KEY_HEX}\n")
        terminal.expect(GOT)
        assert terminal.end() == (0, True)
        assert "<stopped>" not in terminal.shown


def test_signal_that_the_caller_ignores_stays_ignored() -> None:
    with Terminal(["sh", "-c", "trap '' HUP; exec " + shlex.join(program(ASK + 'echo "$key"'))]) as terminal:
        terminal.expect(PROMPT)
        os.kill(terminal.job, signal.SIGHUP)
        terminal.press(f"{KEY_HEX}\n")
        terminal.expect(GOT)


def assert_ended(pid_file: Path) -> None:
    pid = int(pid_file.read_text())
    assert wait_until(lambda: not is_alive(pid), 10), f"the key command {pid} still runs"

"""Where the secret that unlocks comes from: options, files, descriptors, the terminal."""

from __future__ import annotations

import argparse
import getpass
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli.common import terminal
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import build
from tdefs.cli.common.secret_options import SecretOptions, add_secret, protector_of
from tdefs.cli.common.terminal import warn
from tdefs.errors import Exit, TdefsError
from tdefs.keys import private_files
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.keys.protectors.recovery import RecoveryCodeProtector, show_code
from tdefs.keys.sources.base import KeySource
from tdefs.keys.wrapping import WrapContext
from tests.support.volume import TDEFS
from tests.unit.keys.keystore_samples import PASSPHRASE, VOLUME_ID, everything_shown

KEYSTORE = Path("/nonexistent/keystore")


def no_source(name: str) -> KeySource:
    raise AssertionError(f"nobody asked for a key source, but {name} is to be found")


INVOCATION = Invocation()


def parse(*arguments: str, recovery: bool = False) -> SecretOptions:
    parser = argparse.ArgumentParser(prog="tdefs")
    add_secret(parser, recovery=recovery)
    return build(SecretOptions, vars(parser.parse_args(arguments)), INVOCATION)


def protector(*arguments: str, recovery: bool = False, confirm: bool = False) -> Protector:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Invocation, "key_source", no_source)
        return protector_of(INVOCATION, parse(*arguments, recovery=recovery), KEYSTORE, confirm=confirm)


def no_secret(action: Callable[[], object]) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        action()
    assert caught.value.exit_code == Exit.NO_SECRET
    return caught.value


@pytest.mark.parametrize(
    "arguments",
    [
        ("--passphrase-file", "f", "--passphrase-fd", "3"),
        ("--passphrase-file", "f", "--key-command", "c"),
        ("--passphrase-fd", "3", "--key-command", "c"),
        ("--passphrase-fd", "-1"),
        ("--passphrase-fd", "x"),
        ("--passphrase-fd", "99999999999"),
    ],
)
def test_conflicting_or_invalid_options_are_usage_errors(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == Exit.USAGE
    assert "descriptor_number" not in capsys.readouterr().err


def test_options_choose_the_protector_and_read_nothing_yet() -> None:
    for arguments in (("--passphrase-file", "/nonexistent"), ("--passphrase-fd", "999"), ()):
        assert isinstance(
            protector(*arguments, confirm=True),
            PassphraseProtector,
        )
    chosen = protector("--key-command", "exit 1", confirm=False)
    assert isinstance(chosen, CommandProtector)


@pytest.mark.parametrize("arguments", [("-R",), ("--authprompt", "--passphrase-file", "f")])
def test_authprompt_without_a_key_command_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(TdefsError) as caught:
        protector(*arguments, confirm=False)
    assert caught.value.exit_code == Exit.USAGE


def test_authprompt_lets_the_key_command_use_the_terminal() -> None:
    for option in ("-R", "--authprompt"):
        protector(option, "--key-command", "ask %R", confirm=False)
    with pytest.raises(TdefsError, match="--authprompt was not given"):
        protector("--key-command", "ask %R", confirm=False)


def test_recovery_code_is_asked_for_without_echo_or_read_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show_code(4711)
    file = tmp_path / "code"
    file.write_text(shown.lower() + "\n")
    prompts: list[str] = []
    monkeypatch.setattr(terminal, "_check_terminal", lambda *_: None)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: prompts.append(prompt) or shown)  # type: ignore[func-returns-value]
    context = WrapContext(VOLUME_ID, "protector key by recovery-code", "pr_1", 0, "pr_1")
    wrapped = RecoveryCodeProtector(shown.encode).wrap(bytes(32), context)
    entry = ProtectorEntry("pr_1", "recovery-code", now(), "mk_1", wrapped.params, wrapped.wrapped)
    for words in (["--recovery-code"], ["--recovery-code-file", str(file)]):
        assert parse(*words, recovery=True).is_given
        assert protector(*words, recovery=True).unwrap(entry, context) == bytes(32)
    assert prompts == ["Recovery code: "]
    with pytest.raises(SystemExit):
        parse("--recovery-code", "--passphrase-fd", "3", recovery=True)


CONTENTS = [
    (b"secret", b"secret"),
    (b"secret\n", b"secret"),
    (b"secret\n\n", b"secret\n"),
    (b" two\nlines \n", b" two\nlines "),
    (b"\xff\x00binary\r\n", b"\xff\x00binary\r"),
    (b"", b""),
    (b"x" * 65536, b"x" * 65536),
]


@pytest.mark.parametrize(("content", "expected"), CONTENTS)
def test_passphrase_is_the_whole_content_without_one_newline_at_the_end(
    content: bytes, expected: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    assert private_files.read_passphrase_file(file, warn) == expected
    descriptor = os.open(file, os.O_RDONLY)
    assert private_files.read_passphrase_descriptor(descriptor) == expected
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_unreadable_passphrase_file_has_a_clear_error(tmp_path: Path) -> None:
    assert "No such file" in no_secret(lambda: private_files.read_passphrase_file(tmp_path / "none", warn)).detail
    assert "directory" in no_secret(lambda: private_files.read_passphrase_file(tmp_path, warn)).detail
    no_secret(lambda: private_files.read_passphrase_file(Path("\0"), warn))


def test_endless_passphrase_is_refused() -> None:
    assert "longer" in no_secret(lambda: private_files.read_passphrase_file(Path("/dev/zero"), warn)).message


def test_closed_descriptor_has_a_clear_error() -> None:
    assert "999" in no_secret(lambda: private_files.read_passphrase_descriptor(999)).message


def test_without_a_terminal_the_three_options_are_named() -> None:
    program = (
        "from tdefs.cli.common.terminal import ask_passphrase\n"
        "from tdefs.errors import TdefsError\n"
        "try: ask_passphrase(confirm=False)\n"
        "except TdefsError as error: print(int(error.exit_code), error.render())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        start_new_session=True,
        input="typed into stdin\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(f"{Exit.NO_SECRET:d} ")
    for option in ("--passphrase-file", "--passphrase-fd", "--key-command"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("words", "what", "option"),
    [
        (("key", "verify", "--recovery-code"), "recovery code", "--recovery-code-file"),
        (("protector", "add", "--passphrase-file", "PASSPHRASE"), "new passphrase", "--new-passphrase-file"),
    ],
)
def test_without_a_terminal_the_options_for_what_was_asked_are_named(
    words: tuple[str, ...], what: str, option: str, tmp_path: Path
) -> None:
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE)
    secret.chmod(0o600)
    volume = tmp_path / "volume"
    unlock = ("--passphrase-file", secret)
    subprocess.run([TDEFS, "init", volume, *unlock, "--scrypt-cost", "14"], check=True, capture_output=True)
    add = (TDEFS, "protector", "add", "--volume", volume, *unlock, "--recovery-code")
    subprocess.run(add, check=True, capture_output=True)
    result = subprocess.run(
        [TDEFS, *(word.replace("PASSPHRASE", str(secret)) for word in words), "--volume", volume],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == Exit.NO_SECRET
    assert f"no terminal to ask for the {what}\n" in result.stderr
    assert f"HINT:  use {option}" in result.stderr


def run_on_terminal(answers: list[bytes], *, confirm: bool) -> bytes:
    """Ask on a real pseudo-terminal; return all that appeared on it, the outcome in hexadecimal last."""
    child, terminal = pty.fork()
    if child == 0:
        program = (
            "from tdefs.cli.common.terminal import ask_passphrase\n"
            "from tdefs.errors import TdefsError\n"
            f"try: print('got', ask_passphrase(confirm={confirm}).hex())\n"
            "except TdefsError as error: print('exit', int(error.exit_code), error.message)\n"
        )
        os.execv(sys.executable, [sys.executable, "-c", program])  # noqa: S606
    shown = b""
    try:
        for answer in answers:
            while not shown.endswith(b": "):
                shown += os.read(terminal, 4096)
            os.write(terminal, answer)
            shown += b"\n"
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:
        pass  # Linux says EIO when the other side of the terminal is closed
    finally:
        os.waitpid(child, 0)
        os.close(terminal)
    return shown


def test_prompt_does_not_echo() -> None:
    shown = run_on_terminal([PASSPHRASE + b"\n"], confirm=False)
    assert shown.count(b"Passphrase") == 1
    assert b"got " + PASSPHRASE.hex().encode() in shown
    assert PASSPHRASE not in shown


def test_new_passphrase_is_asked_for_twice_and_must_agree() -> None:
    shown = run_on_terminal(["gr\u00fc\u00dfe\n".encode()] * 2, confirm=True)
    assert b"got " + "gr\u00fc\u00dfe".encode().hex().encode() in shown
    shown = run_on_terminal([b"first one\n", b"other one\n"], confirm=True)
    assert b"exit 25 the two passphrases are different" in shown
    assert b"first one" not in shown


def test_end_of_input_at_the_prompt_is_no_secret() -> None:
    assert b"exit 25 could not read" in run_on_terminal([b"\x04"], confirm=False)


def test_undecodable_input_is_not_kept_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecodable(prompt: str) -> str:
        return (PASSPHRASE + b"\xff").decode("utf-8")

    monkeypatch.setattr(terminal, "_check_terminal", lambda *_: None)
    monkeypatch.setattr(getpass, "getpass", undecodable)
    error = no_secret(lambda: terminal.ask_passphrase(confirm=False))
    assert PASSPHRASE.decode() not in everything_shown(error)

"""The command protector: a program that the user names prints the key that wraps the protector key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.protectors.base import Obtained, Parameters, Protector, WrongSecretError
from tdefs.keys.protectors.command_run import CommandOutcome, cleaned_up_before_signals, run_command
from tdefs.keys.protectors.command_text import (
    DIRECTORY_VARIABLE,
    PROMPT_VARIABLE,
    TERMINAL_VARIABLE,
    check_command,
    command_directory,
    ensure_command_directory,
    parse_command,
)
from tdefs.keys.wrapping import WrapContext
from tdefs.text import masked

#: Lends the terminal: the ``with`` block has a descriptor of it, of one digit.
LendTerminal = Callable[[], AbstractContextManager[int]]

KEY_HEX_CHARACTERS = 64
TIMEOUT_SECONDS = 60.0
# A person looks for the card first.
PERSON_TIMEOUT_SECONDS = 300.0

# Room to count the characters of a key that is too long; more than that is no key.
_MAX_OUTPUT_BYTES = 4096
_HEX = re.compile(rb"[0-9a-fA-F]+")


@dataclass(frozen=True)
class KeyCommand:
    """A shell command that prints 64 hexadecimal characters, as PostgreSQL's proposed cluster_key_command.

    ``text`` may have the placeholders that :func:`parse_command` knows. ``keystore`` is the keystore that the key
    unlocks; without one, %d and %p are not allowed. ``lend_terminal`` allows %R. ``timeout_seconds`` is one
    minute by default, or five where a person is asked on the terminal.
    """

    text: str
    keystore: Path | None = None
    lend_terminal: LendTerminal | None = None
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check the placeholders.

        :raises TdefsError: KEY_COMMAND_FAILED for a placeholder that is unknown or not allowed.
        """
        used = parse_command(self.text).variables
        if self.keystore is None and not used.isdisjoint((DIRECTORY_VARIABLE, PROMPT_VARIABLE)):
            raise TdefsError(
                Exit.KEY_COMMAND_FAILED, "the key command uses %d or %p, and there is no keystore that it is for"
            )
        if TERMINAL_VARIABLE in used and self.lend_terminal is None:
            raise TdefsError(
                Exit.KEY_COMMAND_FAILED,
                "the key command uses %R, but --authprompt was not given",
                hint="call tdefs on a terminal, with --authprompt (-R)",
            )

    def read_key(self, *, again: bool = False) -> bytes:
        """Run the command and return the 32 bytes that it printed.

        :param again: have %p say that this is the second time.
        :raises TdefsError: KEY_COMMAND_FAILED, whose text says how much the command printed and never what (even
            the messages of a failing command may contain the key); NO_SECRET if there is no terminal for %R; what
            is wrong with the directory for %d; CONFIG_EXPOSED if other users could change what it runs.
        """
        text = parse_command(self.text)
        variables = {}
        directory = None
        if self.keystore is not None:
            if DIRECTORY_VARIABLE in text.variables:
                directory = command_directory(self.keystore)
                ensure_command_directory(directory)
                variables[DIRECTORY_VARIABLE] = os.fspath(directory)
            if PROMPT_VARIABLE in text.variables:
                variables[PROMPT_VARIABLE] = _prompt(self.keystore, again)
        check_command(text.shell, directory)
        descriptors: tuple[int, ...] = ()
        timeout_seconds = self.timeout_seconds or TIMEOUT_SECONDS
        lend_terminal = self.lend_terminal if TERMINAL_VARIABLE in text.variables else None
        with cleaned_up_before_signals(at_terminal=lend_terminal is not None), ExitStack() as stack:
            if lend_terminal is not None:
                terminal = stack.enter_context(lend_terminal())
                variables[TERMINAL_VARIABLE] = str(terminal)
                descriptors = (terminal,)
                timeout_seconds = self.timeout_seconds or PERSON_TIMEOUT_SECONDS
            outcome = run_command(
                text.shell,
                timeout_seconds=timeout_seconds,
                max_output_bytes=_MAX_OUTPUT_BYTES,
                variables=variables,
                descriptors=descriptors,
            )
        _check_ending(outcome, timeout_seconds)
        return _parse_key(outcome)


class CommandProtector(Protector):
    """The key that a key command prints. One command may serve many volumes."""

    kind = "command"
    words = "the key command"
    purpose = b"tdefs v1 command wrapping key"

    def __init__(
        self,
        command: str,
        keystore: Path | None = None,
        *,
        lend_terminal: LendTerminal | None = None,
        confirm: bool = False,
    ) -> None:
        """See KeyCommand. It is run when its key is needed: once or, to ``confirm`` a new key, twice."""
        super().__init__()
        self._command = KeyCommand(command, keystore, lend_terminal)
        self._confirm = confirm

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector.

        :raises TdefsError: as :meth:`KeyCommand.read_key`.
        """
        return Obtained(self._key)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector.

        :raises TdefsError: as :meth:`KeyCommand.read_key`.
        """
        return self._key

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError("the key command printed another key than the one the keystore was made with")

    @cached_property
    def _key(self) -> bytes:
        key = self._command.read_key()
        if self._confirm and self._command.read_key(again=True) != key:
            raise TdefsError(
                Exit.KEY_COMMAND_FAILED,
                "the key command printed two different keys when it was run twice",
                detail="what a key protects could never be unlocked if the command did not print it again",
                hint="type the same both times; a command that makes a key must keep it, for example in %d",
            )
        return key


def _prompt(keystore: Path, again: bool) -> str:
    # The terminal acts upon control characters, and a file name may have them.
    name = masked(os.fspath(keystore))
    return f'Secret for the keystore "{name}"{", again" if again else ""}: '


def _parse_key(outcome: CommandOutcome) -> bytes:
    printed = outcome.stdout.rstrip(b"\r\n")
    if outcome.overflowed or len(printed) != KEY_HEX_CHARACTERS:
        length = f"more than {_MAX_OUTPUT_BYTES}" if outcome.overflowed else str(len(printed))
        raise _failed(
            "the key command printed a key of the wrong length",
            f"it printed {length} characters, and {KEY_HEX_CHARACTERS} are expected",
        )
    if not _HEX.fullmatch(printed):
        raise _failed("the key command printed characters that are not hexadecimal", "")
    return bytes.fromhex(printed.decode("ascii"))


def _check_ending(outcome: CommandOutcome, timeout_seconds: float) -> None:
    stderr = f"it printed {outcome.stderr_bytes} bytes on stderr, not shown because a key may be among them"
    if outcome.timed_out:
        raise _failed(f"the key command did not finish within {timeout_seconds:g} seconds", stderr)
    if outcome.overflowed:
        return
    if outcome.status < 0:
        raise _failed(f"the key command was ended by signal {-outcome.status}", stderr)
    if outcome.status > 0:
        raise _failed(f"the key command failed with exit status {outcome.status}", stderr)
    if outcome.stderr_bytes:
        raise _failed("the key command printed messages on stderr", stderr)


def _failed(message: str, detail: str) -> TdefsError:
    return TdefsError(
        Exit.KEY_COMMAND_FAILED,
        message,
        detail=detail,
        hint=f"run the command by hand: it must print {KEY_HEX_CHARACTERS} hexadecimal characters and nothing on"
        " stderr, and exit 0",
    )

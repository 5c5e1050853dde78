"""The command protector: a program of the user's prints the key that wraps the master key."""

from __future__ import annotations

import re
from functools import cached_property

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import ProtectorEntry, damaged
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.protectors.base import NotMineError, Protector, WrappedMasterKey, WrongSecretError
from tdefs.keys.protectors.command_run import CommandOutcome, run_command
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

KEY_HEX_CHARACTERS = 64
TIMEOUT_SECONDS = 60.0

_PURPOSE = b"tdefs v1 command wrapping key"
_WRAPPING_KEY_BYTES = 32
# Room to count the characters of a key that is too long; more than that is no key.
_MAX_OUTPUT_BYTES = 4096
_HEX = re.compile(rb"[0-9a-fA-F]+")


class CommandProtector(Protector):
    """A shell command that prints 64 hexadecimal characters, as PostgreSQL's proposed cluster_key_command."""

    kind = "command"

    def __init__(self, command: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """``command`` is run by ``/bin/sh -c``, once, when its key is needed."""
        self._command = command
        self._timeout_seconds = timeout_seconds

    @cached_property
    def _key(self) -> bytes:
        return read_key(self._command, self._timeout_seconds)

    def wrap(self, master_secret: bytes, context: WrapContext) -> WrappedMasterKey:
        """See Protector. Raises TdefsError(KEY_COMMAND_FAILED)."""
        return WrappedMasterKey(
            params={}, wrapped=wrap_secret(self._wrapping_key(context), master_secret, context)
        )

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See Protector. Raises TdefsError(KEY_COMMAND_FAILED)."""
        if entry.kind != self.kind:
            raise NotMineError
        if entry.params:
            raise damaged(f"protector {entry.id}: expected no parameters")
        try:
            return unwrap_secret(self._wrapping_key(context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                "the key command printed another key than the one the keystore was made with"
            ) from None

    def _wrapping_key(self, context: WrapContext) -> bytes:
        # One command may serve many volumes: each gets its own wrapping key.
        return hkdf_sha256(self._key, _PURPOSE + context.to_bytes(), _WRAPPING_KEY_BYTES)


def read_key(command: str, timeout_seconds: float = TIMEOUT_SECONDS) -> bytes:
    """Run ``command`` and return the 32 bytes it printed as hexadecimal characters.

    Raises TdefsError(KEY_COMMAND_FAILED), whose text tells how much the command printed and never what:
    even a failing command's messages may have the key in them.
    """
    outcome = run_command(command, timeout_seconds=timeout_seconds, max_output_bytes=_MAX_OUTPUT_BYTES)
    _check_ending(outcome, timeout_seconds)
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


def _failed(message: str, detail: str) -> TdefsError:
    return TdefsError(
        Exit.KEY_COMMAND_FAILED,
        message,
        detail=detail,
        hint=f"run the command by hand: it must print {KEY_HEX_CHARACTERS} hexadecimal characters and exit 0",
    )

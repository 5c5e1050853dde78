"""The person at the terminal: warnings and notes on stderr, questions without echo, and lending the terminal."""

from __future__ import annotations

import getpass
import os
import sys
import termios
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tdefs.errors import NoSecretError

OTHER_OPTIONS = "use --passphrase-file, --passphrase-fd, --key-command or --key-source"

# dash does not take "<&12" as a descriptor: POSIX demands one digit only.
_HIGHEST_DESCRIPTOR = 9


def warn(message: str, *, detail: str = "", hint: str = "") -> None:
    """Print a warning on stderr."""
    lines = [f"tdefs: warning: {message}"]
    lines += [f"{name}:  {text}" for name, text in (("DETAIL", detail), ("HINT", hint)) if text]
    print("\n".join(lines), file=sys.stderr, flush=True)


class TerminalDialogue:
    """The dialogue of the keys with the person at the terminal: see :class:`tdefs.keys.dialogue.Dialogue`."""

    warn = staticmethod(warn)

    def note(self, text: str) -> None:
        """See Dialogue."""
        print(f"tdefs: {text}", file=sys.stderr, flush=True)

    def ask_secret(self, name: str, *, instead: str) -> bytes:
        """See Dialogue."""
        return ask_passphrase(confirm=False, name=name, instead=instead)


def ask_passphrase(*, confirm: bool, name: str = "Passphrase", instead: str = OTHER_OPTIONS) -> bytes:
    """Ask for the passphrase, or what *name* says, on the terminal, without echo; return it in UTF-8.

    :param confirm: ask twice; the two answers must be the same.
    :param instead: what to do if nobody can answer; the hint of the error.
    :raises TdefsError: NO_SECRET if there is no terminal, the input ends or the second answer differs.
    """
    what = name.lower()
    _check_terminal(what, instead)
    passphrase = _ask(f"{name}: ", what, instead)
    if confirm and _ask(f"{name} again: ", what, instead) != passphrase:
        raise NoSecretError("the two passphrases are different")
    return passphrase


def _check_terminal(what: str, instead: str) -> None:
    """Raise TdefsError without a terminal: getpass would read a passphrase from stdin, with echo."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise NoSecretError(f"there is no terminal to ask for the {what}", hint=instead) from None


def _ask(prompt: str, what: str, instead: str) -> bytes:
    try:
        with warnings.catch_warnings():
            # It warns of a terminal whose echo cannot be turned off.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt).encode("utf-8", "surrogateescape")
    except (EOFError, OSError, UnicodeError, getpass.GetPassWarning):
        pass
    # Raised here, without a context: a UnicodeDecodeError carries what was typed.
    raise NoSecretError(f"could not read the {what} from the terminal", hint=instead)


@contextmanager
def lent_terminal() -> Iterator[int]:
    """Lend a descriptor of this process's terminal, of one digit; afterwards restore the terminal's settings.

    A command in another session may read from it and turn its echo off. Job control stops background processes
    that do so, but only those of the terminal's own session (tty_check_change in the kernel's
    drivers/tty/tty_jobctrl.c). The command must then be the only process that reads.

    :raises TdefsError: NO_SECRET without a terminal.
    """
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise NoSecretError(
            "there is no terminal that the key command could ask on",
            hint="--authprompt needs a terminal; without one, use a key command that asks nobody",
        ) from None
    try:
        if descriptor > _HIGHEST_DESCRIPTOR:
            raise NoSecretError(
                "there is no file descriptor for %R",
                detail=f"0 to {_HIGHEST_DESCRIPTOR} are all open, and shells know no others",
                hint="close some before tdefs is started",
            )
        before = _take_foreground(descriptor)
        try:
            yield descriptor
        finally:
            _restore(descriptor, before)
    finally:
        os.close(descriptor)


def _take_foreground(descriptor: int) -> list[Any]:
    """Return the terminal's settings. Here the kernel stops a job that is not in the foreground."""
    try:
        settings = termios.tcgetattr(descriptor)
        # The shell must not read what a person types here. The kernel stops a background job that changes settings
        # of the terminal, as it stops one that reads.
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    except termios.error:
        raise NoSecretError(
            "the key command cannot ask on the terminal, because tdefs runs in the background",
            hint="start tdefs in the foreground; it goes to the background by itself",
        ) from None
    return settings


def _restore(descriptor: int, before: list[Any]) -> None:
    # The terminal may be gone.
    with suppress(termios.error, OSError):
        if termios.tcgetattr(descriptor) != before:
            # The shell must not get the rest of a secret that nobody has read.
            termios.tcflush(descriptor, termios.TCIFLUSH)
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
            os.write(descriptor, b"\n")

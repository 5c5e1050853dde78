"""Lending the terminal to a key command, and getting it back as it was."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tdefs.errors import Exit, TdefsError

# In "<&12" dash sees no descriptor: POSIX shells need take one digit only.
_HIGHEST_DESCRIPTOR = 9


@contextmanager
def lent_terminal() -> Iterator[int]:
    """Give a descriptor of this process's terminal, of one digit; afterwards restore the terminal's settings.

    A command in another session may read from it and turn its echo off: job control, which stops background
    processes that do so, concerns only the terminal's own session (tty_check_change in the kernel's
    drivers/tty/tty_jobctrl.c). It must then be the only one that reads.

    Raises TdefsError(NO_SECRET) without a terminal.
    """
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise TdefsError(
            Exit.NO_SECRET,
            "there is no terminal that the key command could ask on",
            hint="--authprompt needs a terminal; without one, use a key command that asks nobody",
        ) from None
    try:
        if descriptor > _HIGHEST_DESCRIPTOR:
            raise TdefsError(
                Exit.NO_SECRET,
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
    """Return the terminal's settings; a job in the background is stopped here until it is in the foreground."""
    try:
        settings = termios.tcgetattr(descriptor)
        # What the shell reads at its prompt must not be what is typed for us: setting anything makes the
        # kernel stop a background job, as reading would.
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    except termios.error:
        raise TdefsError(
            Exit.NO_SECRET,
            "the key command cannot ask on the terminal, because tdefs runs in the background",
            hint="start tdefs in the foreground; it goes to the background by itself",
        ) from None
    return settings


def _restore(descriptor: int, before: list[Any]) -> None:
    # The terminal may be gone.
    with suppress(termios.error, OSError):
        if termios.tcgetattr(descriptor) != before:
            # The rest of a secret that nobody has read is not for the shell.
            termios.tcflush(descriptor, termios.TCIFLUSH)
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
            os.write(descriptor, b"\n")

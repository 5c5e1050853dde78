"""What the keys need of the program around them: it shows warnings, says what it waits for, and asks a person.

Nothing in ``tdefs.keys`` prints or reads from the terminal. The command line implements this
(:mod:`tdefs.cli.common.terminal`); another program may log, or refuse to ask.
"""

from __future__ import annotations

from typing import Protocol


class Warn(Protocol):
    """Shows a warning to the person who called the program, or logs it. None of the texts contains a secret."""

    def __call__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        """Show ``message``, and below it what happened (``detail``) and what to do (``hint``)."""


class Dialogue(Protocol):
    """The person in front of the program, or the log if there is none."""

    @property
    def warn(self) -> Warn:
        """What shows a warning."""

    def note(self, text: str) -> None:
        """Show one line that says what the program is doing, such as waiting for a server."""

    def ask_secret(self, name: str, *, instead: str) -> bytes:
        """Ask for the secret that ``name`` says, without echo; return what was typed, in UTF-8.

        :param instead: what to do where nobody can answer; the hint of the error.
        :raises TdefsError: NO_SECRET if nobody can be asked, or the input ends.
        """

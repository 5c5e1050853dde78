"""What every parser promises of any input: a result or its own error, soon, and nothing secret shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdefs.errors import Exit, TdefsError

#: Nothing that reads an input of the sizes here takes so long.
SECONDS = 5.0
_LONGEST_MESSAGE = 65536


class BrokenPromiseError(Exception):
    """A parser did what it must not."""


@dataclass(frozen=True)
class Target:
    """One parser under test.

    ``run`` feeds it one input, tells in a word what came of it, and raises anything for what must not be.
    """

    name: str
    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]
    max_size: int
    words: tuple[bytes, ...] = ()


def expect(holds: bool, promise: str) -> None:
    """Raise BrokenPromiseError unless the promise holds; it names no input, which may be long."""
    if not holds:
        raise BrokenPromiseError(promise)


def expect_line(error: Exception) -> None:
    """Check that an error, whatever its input was, is told in one line that is not long."""
    expect(str(error).isprintable() and len(str(error)) < 1000, "the error is no line of text")


def refusal(error: TdefsError, *codes: Exit) -> str:
    """Check the error that a user would see, and tell its exit code in a word."""
    expect(error.exit_code in codes, f"exit code {error.exit_code!r} is none of {codes}")
    expect(bool(error.message), "the error says nothing")
    shown = error.render()
    expect(len(shown) <= _LONGEST_MESSAGE, f"the message has {len(shown)} characters")
    expect(all(char.isprintable() or char == "\n" for char in shown), "the message has control characters")
    shown.encode()
    return Exit(error.exit_code).name

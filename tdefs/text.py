"""Text that others wrote, made fit for one line of a message, a log or a terminal."""

from __future__ import annotations

_SHORT_CHARACTERS = 64


def printable(text: str) -> str:
    """Return ``text`` with what a terminal must not get, control characters and stray bytes, as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def printable_path(path: bytes) -> str:
    """Return ``path`` likewise, whatever its bytes are: those that are not UTF-8 become escapes."""
    return printable(path.decode("utf-8", "backslashreplace"))


def shortened(text: str) -> str:
    """Return ``text`` likewise, but of its characters at most 64: the first ones, and three dots."""
    return printable(text if len(text) <= _SHORT_CHARACTERS else text[: _SHORT_CHARACTERS - 3] + "...")


def masked(text: str, mask: str = "?") -> str:
    """Return ``text`` with ``mask`` for each character that a terminal must not get; it gets no longer."""
    return "".join(char if char.isprintable() else mask for char in text)

"""Text from outside, made safe for one line of a message, a log or a terminal."""

from __future__ import annotations

_SHORT_CHARACTERS = 64


def printable(text: str) -> str:
    """Return ``text`` with control characters and stray bytes as escapes, since a terminal must not get them."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def printable_path(path: bytes) -> str:
    """Return ``path`` as :func:`printable` does; bytes that are not UTF-8 become escapes, too."""
    return printable(path.decode("utf-8", "backslashreplace"))


def shortened(text: str) -> str:
    """Return ``text`` as :func:`printable` does, but at most its first 64 characters, with three dots if cut."""
    return printable(text if len(text) <= _SHORT_CHARACTERS else text[: _SHORT_CHARACTERS - 3] + "...")


def masked(text: str, mask: str = "?") -> str:
    """Return ``text`` with ``mask`` for each character that a terminal must not get, in the same length."""
    return "".join(char if char.isprintable() else mask for char in text)

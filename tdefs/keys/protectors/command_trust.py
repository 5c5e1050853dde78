"""What a key command runs and reads, so far as its text tells: nobody else may be able to change that."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from tdefs.keys.protectors.command_text import DIRECTORY_VARIABLE
from tdefs.trust import check_trusted

_WHAT = "file that the key command uses"


def check_command(shell: str, directory: Path | None) -> None:
    """Check each program and each file that ``shell``, the text for /bin/sh, names.

    That is each word that is the path of something, or a program that is found along PATH; with ``directory``,
    that for %d, also what is named in it. Where words are made only when the shell runs (variables,
    substitutions), or inside of a program, tdefs cannot know them.

    Raises TdefsError(CONFIG_EXPOSED).
    """
    for word in _words(shell):
        text = word
        if directory is not None:
            text = text.replace(f"${{{DIRECTORY_VARIABLE}}}", os.fspath(directory))
        # --file=/etc/x, @/etc/x, <<</etc/x
        candidates = {text, text[text.find("/") :]} if "/" in text else {text}
        for candidate in candidates:
            if "/" not in candidate:
                _check_program(candidate)
            elif os.path.lexists(candidate):
                check_trusted(Path(candidate), _WHAT)


def _check_program(name: str) -> None:
    """Check a program that the shell finds by itself, and the directories where it looks first."""
    found = []
    for part in os.environ.get("PATH", os.defpath).split(os.pathsep):
        place = Path(part or ".") / name
        found.append(place)
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113 - false, where it may not be looked at
            break
    else:
        return  # it is no program, or one of the shell's own
    for place in found:
        if os.path.isdir(place.parent):  # noqa: PTH112
            check_trusted(place.parent, f'directory in PATH, where "{name}" of the key command is looked for,')
    check_trusted(found[-1], _WHAT)


def _words(shell: str) -> Iterator[str]:
    """Yield the words of a shell's text, without quotes and operators."""
    lexer = shlex.shlex(shell, posix=True, punctuation_chars="();<>|&`\n")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            words.append(word)
    except ValueError:
        words += shell.split()
    for word in words:
        # what is quoted may be a text for another shell: sh -c '…'
        yield word
        if any(character.isspace() for character in word):
            yield from word.split()

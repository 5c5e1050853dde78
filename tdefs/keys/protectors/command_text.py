"""The text of a key command: its placeholders, and the files that it names or that lie in its directory.

No other user may be able to change these files. The directory is beside the keystore.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import Exit, TdefsError, naming
from tdefs.keys.private_files import refuse_exposed
from tdefs.private import UntrustedError, kind_of, own_place
from tdefs.trust import check_trusted

DIRECTORY_VARIABLE = "TDEFS_KEY_DIRECTORY"
PROMPT_VARIABLE = "TDEFS_KEY_PROMPT"
TERMINAL_VARIABLE = "TDEFS_KEY_TERMINAL"

_VARIABLES = {"d": DIRECTORY_VARIABLE, "p": PROMPT_VARIABLE, "R": TERMINAL_VARIABLE}
_HINT = "a key command knows %d (directory), %p (prompt), %R (terminal) and %% (a percent sign)"
_WHAT = "file that the key command uses"


@dataclass(frozen=True)
class CommandText:
    """``shell``: the text for ``/bin/sh -c``; ``variables``: which of the three variables it refers to."""

    shell: str
    variables: frozenset[str]


def parse_command(command: str) -> CommandText:
    """Replace the placeholders in ``command``: %d, %p and %R by a reference to a variable, %% by a percent sign.

    Only references go into the text, never values: the shell does not parse the value of a variable, so the name
    of a directory cannot become a command. A reference outside of quotes gets double quotes, so that it is one
    word whatever its value is. In single quotes the shell would not replace it, so that is an error.

    :raises TdefsError: KEY_COMMAND_FAILED for a placeholder in single quotes, and for a percent sign before any
        other character.
    """
    shell: list[str] = []
    variables = set()
    quotes = _Quotes()
    characters = iter(command)
    for character in characters:
        if character != "%":
            shell.append(character)
            quotes.pass_by(character)
            continue
        name = next(characters, "")
        if name == "%":
            shell.append("%")
            quotes.pass_by("%")
        elif name in _VARIABLES:
            if quotes.literal:
                raise _failed(
                    f"the key command has %{name} in single quotes, or after a backslash",
                    "write it in double quotes, or in none",
                )
            variables.add(_VARIABLES[name])
            reference = f"${{{_VARIABLES[name]}}}"
            shell.append(reference if quotes.double else f'"{reference}"')
        else:
            raise _failed(
                f'the key command has "%{name}", which stands for nothing'
                if name.isprintable() and name
                else "the key command has a percent sign that stands for nothing",
                _HINT,
            )
    return CommandText("".join(shell), frozenset(variables))


class _Quotes:
    """The quotes of the shell around the next character. Inside ``$(…)`` quoting starts anew."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._previous = ""
        self._escaped = False

    @property
    def double(self) -> bool:
        return self._open[-1:] == ['"']

    @property
    def literal(self) -> bool:
        return self._escaped or self._open[-1:] == ["'"]

    def pass_by(self, character: str) -> None:
        previous, self._previous = self._previous, character
        if self._escaped:
            self._escaped = False
            self._previous = ""
        elif self._open[-1:] == ["'"]:
            if character == "'":
                self._open.pop()
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._open.pop() if self.double else self._open.append('"')
        elif character == "(" and (previous == "$" or not self.double):
            self._open.append("(")
        elif character == ")" and self._open[-1:] == ["("]:
            self._open.pop()
        elif character == "'" and not self.double:
            self._open.append("'")


def _failed(message: str, hint: str) -> TdefsError:
    return TdefsError(Exit.KEY_COMMAND_FAILED, message, hint=hint)


def command_directory(keystore: Path) -> Path:
    """Return the directory for the files of the key command of ``keystore``, whether or not it exists."""
    return keystore.with_name(keystore.name + ".d").absolute()


def ensure_command_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), durably, or check that an existing one is closed to other users.

    :raises TdefsError: KEYSTORE_EXPOSED if it is not closed, by the rules for the keystore itself; FILE_UNTRUSTED;
        OS_ERROR.
    """
    try:
        with own_place(directory) as above:
            with suppress(FileExistsError), naming(directory):
                os.mkdir(directory.name, 0o700, dir_fd=above.fd)
                above.sync()
            status = above.status(directory.name)
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not create the directory "{directory}" for the key command\'s files',
            detail=error.strerror or str(error),
            hint=f"create it for the user who runs tdefs: install -d -m 700 -o USER"
            f" {shlex.quote(os.fspath(directory))}",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(
            directory, f"the key command's files belong there, and it is {kind_of(status)}", "move it away"
        )
    refuse_exposed(directory, status, "key command's directory")


def check_command(shell: str, directory: Path | None) -> None:
    """Check that no other user can change a program or a file that ``shell``, the text for /bin/sh, names.

    That is each word that is the path of something, or a program that is found along PATH, and with ``directory``,
    the directory for %d, also each file that is named in it. tdefs cannot know the words that come into being only
    when the shell runs (variables, substitutions), or inside a program.

    :raises TdefsError: CONFIG_EXPOSED.
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
    """Check a program that the shell finds along PATH, and the directories where it looks first."""
    found = []
    for part in os.environ.get("PATH", os.defpath).split(os.pathsep):
        place = Path(part or ".") / name
        found.append(place)
        if os.path.isfile(place) and os.access(place, os.X_OK):  # noqa: PTH113 - false if this user may not see it
            break
    else:
        return  # it is no program, or it is built into the shell
    for place in found:
        if os.path.isdir(place.parent):  # noqa: PTH112
            check_trusted(place.parent, f'directory in PATH, where "{name}" of the key command is looked for,')
    check_trusted(found[-1], _WHAT)


def _words(shell: str) -> Iterator[str]:
    """Yield the words of a text for the shell, without quotes and operators."""
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
        # a quoted word may be a text for another shell: sh -c '…'
        yield word
        if any(character.isspace() for character in word):
            yield from word.split()

"""The placeholders of a key command, and the shell text that they make of it."""

from __future__ import annotations

from dataclasses import dataclass

from tdefs.errors import Exit, TdefsError

DIRECTORY_VARIABLE = "TDEFS_KEY_DIRECTORY"
PROMPT_VARIABLE = "TDEFS_KEY_PROMPT"
TERMINAL_VARIABLE = "TDEFS_KEY_TERMINAL"

_VARIABLES = {"d": DIRECTORY_VARIABLE, "p": PROMPT_VARIABLE, "R": TERMINAL_VARIABLE}
_HINT = "a key command knows %d (directory), %p (prompt), %R (terminal) and %% (a percent sign)"


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

"""From words to a command: the parser, its messages, and the one place where its result becomes typed options.

The options of a command are a frozen dataclass. Each field has the name of an argument. A field may be such a
dataclass itself, which several commands share. No other module takes what argparse has found.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn, TypeAlias, TypeVar, get_type_hints

from tdefs.cli.common.invocation import Invocation
from tdefs.errors import Exit

PROGRAM = "tdefs"
METAVAR = "COMMAND"
#: What argparse says, and the same in plain words.
_PLAINER = {
    r"expected one argument$": "needs a value",
    r"ignored explicit argument '(.*)'$": r'takes no value, but "\1" was given',
}

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """A parser whose errors show the usage of the right subcommand, and words similar to a wrong one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what *args* say; end the process for an option that this command does not know.

        It comes before what is missing: a user who mistypes an option often misses its value, too.
        """
        wrong = self._unknown_option(sys.argv[1:] if args is None else args)
        if wrong is not None:
            self.error(_unknown(wrong, self))
        return super().parse_known_args(args, namespace)

    def _unknown_option(self, words: Sequence[str]) -> str | None:
        """Return the first of *words* that is a long option of no kind that this parser has."""
        own = takewhile(lambda word: word != "--", words)
        if self._subparsers is not None:
            own = takewhile(lambda word: word.startswith("-"), own)
        for word in own:
            option = word.partition("=")[0]
            # argparse takes a word with a space for a value, and the beginning of an option for the option
            if option.startswith("--") and " " not in word and not self._options_like(option):
                return word
        return None

    def _options_like(self, beginning: str) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith(beginning)]

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed *args*; end the process for a word that the subcommand does not know."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: argparse.ArgumentParser = vars(found).get("leaf_parser", self)
            parser.error(_unknown(unknown[0], parser))
        return found

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and end the process."""
        self.print_usage(sys.stderr)
        for words, plainer in _PLAINER.items():
            message = re.sub(words, plainer, message)
        if message.endswith(f"required: {METAVAR}"):
            message += f"\nHINT:  {self._list_of_commands()}"
        self.exit(Exit.USAGE, f"{self.prog}: error: {message}\n")

    def _list_of_commands(self) -> str:
        (commands,) = (one for one in self._actions if isinstance(one, argparse._SubParsersAction))
        return f"the commands are {', '.join(commands.choices)}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise argparse.ArgumentError(
                None,
                f'unknown command "{value}"' + _suggestion(value, action.choices, self._list_of_commands()),
            )
        super()._check_value(action, value)


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f'one argument too many: "{word}"'
    option = word.partition("=")[0]
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    return f"unknown option {option}" + _suggestion(option, known, f"'{parser.prog} --help' lists them")


def _suggestion(word: str, known: Collection[str], otherwise: str) -> str:
    """Return the line that suggests similar words."""
    close = get_close_matches(word, known, n=2)
    return f"\nHINT:  did you mean {' or '.join(close)}?" if close else f"\nHINT:  {otherwise}"


def subcommands(parser: argparse.ArgumentParser) -> Subcommands:
    """Return what adds the subcommands of a command."""
    return parser.add_subparsers(metavar=METAVAR, required=True)


def takes(
    parser: argparse.ArgumentParser, options: type[Options], run: Callable[[Invocation, Options], int]
) -> None:
    """Let *parser* run the function *run*, with *options* filled from its arguments."""
    command = parser.prog.removeprefix(f"{PROGRAM} ")

    def start(args: argparse.Namespace) -> int:
        values = vars(args)
        invocation: Invocation = values.get("invocation") or Invocation()
        invocation.command = command
        invocation.config_file = values.get("config")
        return run(invocation, build(options, values, invocation))

    parser.set_defaults(run=start, leaf_parser=parser, options_class=options)


def build(options: type[Options], values: dict[str, Any], invocation: Invocation) -> Options:
    """Return *options* with the *values* of the arguments.

    :raises KeyError: no argument has the name of a field that needs one.
    """
    hints = get_type_hints(options)
    filled: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        kind = hints[field.name]
        if kind is Invocation:
            filled[field.name] = invocation
        elif dataclasses.is_dataclass(kind):
            filled[field.name] = build(kind, values, invocation)  # type: ignore[arg-type]
        elif field.name in values or field.default is dataclasses.MISSING:
            filled[field.name] = values[field.name]
    return options(**filled)


def names_of(options: type[Any]) -> set[str]:
    """Return the names of the arguments that *options* may be filled from."""
    found: set[str] = set()
    for name, kind in get_type_hints(options).items():
        if dataclasses.is_dataclass(kind):
            found |= names_of(kind)  # type: ignore[arg-type]
        elif kind is not Invocation:
            found.add(name)
    return found

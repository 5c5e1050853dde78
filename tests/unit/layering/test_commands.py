"""The commands: each is found, and loads only what it needs."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

import tdefs.cli
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import build, names_of
from tdefs.cli.main import COMMANDS, build_parser
from tdefs.errors import Exit

#: The modules that are commands.
MODULES = {
    module.name.removeprefix("tdefs.cli.")
    for module in walk_packages(tdefs.cli.__path__, "tdefs.cli.")
    if hasattr(import_module(module.name), "register")
}


def test_every_command_is_in_the_help() -> None:
    assert set(COMMANDS.values()) == MODULES
    listed = [line.split()[0] for line in build_parser().format_help().splitlines() if line.startswith("  ")]
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(command).parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tdefs {command}" in capsys.readouterr().out


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of the commands that do something."""
    nested = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not nested:
        yield parser
    for action in nested:
        for child in action.choices.values():
            yield from leaves(child)


LEAVES = {leaf.prog: leaf for leaf in leaves(build_parser())}


@pytest.mark.parametrize("words", LEAVES)
def test_each_argument_reaches_a_field_and_each_field_has_an_argument(words: str) -> None:
    leaf = LEAVES[words]
    options = leaf.get_default("options_class")
    given = {action.dest for action in leaf._actions} - {"help", "config"}
    assert given <= names_of(options)
    values = {action.dest: action.default for action in leaf._actions}
    assert isinstance(build(options, values, Invocation()), options)


def test_only_the_parsing_modules_know_what_argparse_has_found() -> None:
    root = Path(tdefs.__file__).parent
    knowing = {
        str(module.relative_to(root))
        for module in root.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "Namespace" and ast.unparse(node.value) == "argparse"
    }
    assert knowing == {"cli/main.py", "cli/common/parsing.py"}


def test_no_command_asks_for_an_option_by_name() -> None:
    asking = {
        str(module)
        for module in Path(tdefs.cli.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
    }
    assert not asking


def test_no_code_asks_an_error_for_its_exit_code_to_decide_what_to_do() -> None:
    deciding = {
        f"{module.relative_to(Path(tdefs.__file__).parent)}:{node.lineno}"
        for module in Path(tdefs.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Compare)
        and any(
            isinstance(one, ast.Attribute) and one.attr == "exit_code" for one in [node.left, *node.comparators]
        )
    }
    assert not deciding


WRONG = {
    ("key", "rotat"): ("tdefs key [-h]", "did you mean rotate?"),
    ("stauts",): ("tdefs [-h]", "did you mean status?"),
    ("key", "list", "--volum3"): ("tdefs key list [-h]", "did you mean --volume?"),
    ("key", "list", "--jsn"): ("tdefs key list [-h]", "did you mean --json?"),
    ("key", "rotate", "dk_1", "dk_2"): ("tdefs key rotate [-h]", 'one argument too many: "dk_2"'),
    ("key", "list", "--xyzzy"): ("tdefs key list [-h]", "'tdefs key list --help' lists them"),
    ("frobnicate",): ("tdefs [-h]", "the commands are"),
    ("mount", "--log-fiel", "x"): ("tdefs mount [-h]", "did you mean --log-file?"),
    ("mount", "--log-fiel"): ("tdefs mount [-h]", "unknown option --log-fiel\nHINT:  did you mean --log-file?"),
    ("--versino", "key", "list"): ("tdefs [-h]", "did you mean --version?"),
    ("key",): ("tdefs key [-h]", "HINT:  the commands are create, rotate"),
    ("key", "list", "--json=x"): ("tdefs key list [-h]", 'argument --json: takes no value, but "x" was given'),
    ("key", "list", "--volume"): ("tdefs key list [-h]", "argument --volume: needs a value"),
    ("key", "revoke", "dk_1", "--round", "x"): ("tdefs key revoke [-h]", "a round is a number, such as 2"),
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_wrong_word_shows_the_usage_of_that_command_and_what_is_close(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    usage, hint = WRONG[words]
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(list(words))
    assert ended.value.code == Exit.USAGE
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage}")
    assert hint in shown


def test_commands_that_take_a_volume_take_it_in_the_same_way() -> None:
    # these two take a backing directory and make something of it, as mount(8) and mkfs(8) do
    creating = {"tdefs init", "tdefs mount"}
    for words, leaf in LEAVES.items():
        names = {action.dest for action in leaf._actions}
        arguments = [action.dest for action in leaf._actions if not action.option_strings]
        if "volume" in names:
            others = set(arguments) - {"volume_argument"}
            assert ("volume_argument" in arguments) == (not others), words
        else:
            assert words in creating or "keystore" not in names, words


@pytest.mark.parametrize("command", ["status", "umount", "key", "protector"])
def test_who_asks_the_daemon_does_not_load_what_it_runs_on(command: str) -> None:
    code = f"import sys; from tdefs.cli.main import build_parser; build_parser({command!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert {"trio", "pyfuse3", "tabulate"}.isdisjoint(done.stdout.split())

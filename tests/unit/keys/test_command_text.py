"""The promises of tdefs.keys.protectors.command_text: what placeholders stand for; no value is shell code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.protectors.command_text import (
    DIRECTORY_VARIABLE,
    PROMPT_VARIABLE,
    TERMINAL_VARIABLE,
    parse_command,
)

#: What a shell would act upon, if it parsed it.
NASTY = "a b  *'\"`touch hit`$(touch hit);touch hit\n#\\ %d ~ ${HOME} -n"
VARIABLES = {DIRECTORY_VARIABLE: NASTY, PROMPT_VARIABLE: f"p{NASTY}", TERMINAL_VARIABLE: "5"}


def run(command: str, cwd: Path) -> list[str]:
    """What the shell makes of a command that prints words, each ended by a null character."""
    done = subprocess.run(
        ["/bin/sh", "-c", parse_command(command).shell],
        env={**os.environ, **VARIABLES},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


def refusal(command: str) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        parse_command(command)
    assert caught.value.exit_code == Exit.KEY_COMMAND_FAILED
    return caught.value


PRINT = r"printf '%%s\0' "


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("%d", [NASTY]),
        ('"%d"', [NASTY]),
        ('"%d/key" %d/key', [f"{NASTY}/key"] * 2),
        ('%R "%p" %d', ["5", f"p{NASTY}", NASTY]),
        ("'single' %d 'single'", ["single", NASTY, "single"]),
        ('"it\'s" %d', ["it's", NASTY]),
        ("it\\'s %d", ["it's", NASTY]),
        ('\\"%d\\"', [f'"{NASTY}"']),
        ('"\\"%d"', [f'"{NASTY}']),
        ('"$(printf %%s "%d")"', [NASTY]),
        ('"$(printf %%s %d)" %d', [NASTY, NASTY]),
        ('"(%d)" "$(echo ")")%d"', [f"({NASTY})", f"){NASTY}"]),
        ("$(printf x)%d", [f"x{NASTY}"]),
        ("%%d %%%% %%%d", ["%d", "%%", f"%{NASTY}"]),
        ("'%%' \\%%", ["%", "%"]),
    ],
)
def test_a_value_is_one_word_in_double_quotes_and_in_none(words: str, expected: list[str], tmp_path: Path) -> None:
    assert run(PRINT + words, tmp_path) == expected
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["%x", "a %D b", "100%", "printf %064d 7", "% d", "%\n", "%%%s", "%é"])
def test_an_unknown_placeholder_is_refused_and_the_known_ones_are_told(command: str) -> None:
    error = refusal(command)
    assert "stands for nothing" in error.message
    assert error.message.isprintable()
    for known in ("%d", "%p", "%R", "%%"):
        assert known in error.hint


@pytest.mark.parametrize(
    "command", ["echo '%d'", "sh -c 'echo \"%p\"'", "echo \\%R", 'echo "\\%d"', "echo 'a'\\''%d"]
)
def test_a_placeholder_where_the_shell_would_not_replace_it_is_refused(command: str) -> None:
    error = refusal(command)
    assert "single quotes, or after a backslash" in error.message
    assert "double quotes" in error.hint


def test_it_is_known_which_variables_a_command_needs() -> None:
    assert parse_command("a %%d").variables == set()
    assert parse_command("a %R %p %R").variables == {TERMINAL_VARIABLE, PROMPT_VARIABLE}
    assert parse_command("a %d").variables == {DIRECTORY_VARIABLE}

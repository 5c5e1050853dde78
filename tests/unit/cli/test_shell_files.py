"""Completions and the manual page know every command and option. Covers tdefs/cli/shell_files.py."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.cli.main import build_parser
from tdefs.cli.shell_files import shell_files, write

FILES = {path.name: content for path, content in shell_files().items()}


def words_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield each command with each of its subcommands and long options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield parser.prog, name
                yield from words_of(child)
        for option in action.option_strings:
            if option.startswith("--"):
                yield parser.prog, option


@pytest.mark.parametrize("name", FILES)
def test_every_command_and_option_is_in_each_file(name: str) -> None:
    # troff writes a hyphen that is not to be broken as \-
    content = FILES[name].replace("\\-", "-")
    missing = {(command, word) for command, word in words_of(build_parser()) if word not in content}
    assert not missing


def test_bash_completes_a_subcommand_an_option_and_a_file(tmp_path: Path) -> None:
    write(tmp_path)
    script = tmp_path / "bash-completion" / "completions" / "tdefs"
    start, whole = f"{tmp_path}/bash-comp", f"{tmp_path}/bash-completion"
    for words, expected in (
        (["key", "rotate-"], "rotate-master"),
        (["key", "list", "--vol"], "--volume"),
        (["status", start], whole),
        (["mount", "/", start], whole),
        (["mount", "--passphrase-file", start], whole),
    ):
        line = (
            f"source {script}; COMP_WORDS=(tdefs {' '.join(words)}); COMP_CWORD={len(words)};"
            ' _shtab_tdefs tdefs "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
        )
        assert expected in done.stdout.split()


def test_the_manual_page_has_a_name_and_a_section_for_each_command() -> None:
    page = FILES["tdefs.1"]
    assert page.startswith('.TH TDEFS "1"')
    assert "tdefs \\- encrypts a PostgreSQL data directory" in page


@pytest.mark.skipif(shutil.which("man") is None, reason="there is no man")
def test_no_line_of_the_manual_page_is_lost_or_too_long() -> None:
    shown = subprocess.run(
        ["man", "-l", "-"],
        input=FILES["tdefs.1"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    ).stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "'tdefs COMMAND --help' explains a command" in " ".join(shown.split())

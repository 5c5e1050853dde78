"""Writes completions for shells, and a manual page, from the parser of ``tdefs``.

``python -m tdefs.cli.shell_files DIRECTORY`` writes below DIRECTORY, which is laid out as ``/usr/local/share``.
scripts/setup.sh calls it. It needs the packages of the extra ``shell``.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from tdefs import __version__
from tdefs.cli.common.parsing import PROGRAM
from tdefs.cli.main import build_parser

_BASH = Path("bash-completion", "completions", PROGRAM)
_ZSH = Path("zsh", "site-functions", f"_{PROGRAM}")
_MAN = Path("man", "man1", f"{PROGRAM}.1")


def shell_files() -> dict[Path, str]:
    """Return the content of each file, by its path."""
    return {
        _BASH: shtab.complete(build_parser(), "bash"),
        _ZSH: shtab.complete(build_parser(), "zsh"),
        _MAN: manual_page(build_parser()),
    }


def manual_page(parser: ArgumentParser) -> str:
    """Return the manual page of all commands, as man(1) reads it."""
    page = Manpage(
        parser,
        format="single-commands-section",
        _data={
            "project_name": PROGRAM,
            "version": __version__,
            "description": "encrypts a PostgreSQL data directory",
            "manual_title": "tdefs",
        },
    )
    return str(page)


def write(directory: Path) -> None:
    """Write the files below *directory*."""
    for path, content in shell_files().items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

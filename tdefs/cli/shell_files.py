"""Writes completions for shells, and a manual page, from the parser of ``tdefs``.

``python -m tdefs.cli.shell_files DIRECTORY`` writes below DIRECTORY, which is laid out as ``/usr/local/share``.
scripts/setup.sh calls it. It needs the packages of the extra ``shell``.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from tdefs import __version__
from tdefs.cli.common.parsing import PROGRAM
from tdefs.cli.main import build_parser

_BASH = Path("bash-completion", "completions", PROGRAM)
_ZSH = Path("zsh", "site-functions", f"_{PROGRAM}")
_USAGE_WIDTH = 70
_MAN = Path("man", "man1", f"{PROGRAM}.1")


def shell_files() -> dict[Path, str]:
    """Return the content of each file, by its path."""
    parser = build_parser()
    _complete_files(parser)
    return {
        _BASH: shtab.complete(parser, "bash"),
        _ZSH: shtab.complete(parser, "zsh"),
        _MAN: manual_page(build_parser()),
    }


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Have shells complete the names of files where an argument is a path."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command)
        elif action.type is Path:
            vars(action)["complete"] = shtab.FILE


def manual_page(parser: argparse.ArgumentParser) -> str:
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
    return _readable(str(page))


def _readable(page: str) -> str:
    """Return *page* with what argparse-manpage leaves undone.

    A usage keeps its lines, its long ones are broken, and no line of text is taken for a request of troff.
    """
    page = page.replace("\nPOSITIONAL ARGUMENTS\n", "\nCOMMANDS\n").replace("\n.SH COMMENTS\n", "\n.SH NOTES\n")
    page = re.sub(r"(?m)^'", r"\\&'", page)
    return re.sub(r"(?m)^usage: (?:.+\n)+", lambda usage: _unfilled(usage[0]), page)


def _unfilled(usage: str) -> str:
    """Return a usage whose lines troff leaves as they are."""
    parts = re.split(r" (?=\[)|(?<=[]|]) ", " ".join(usage.split()))
    lines = parts[:1]
    for part in parts[1:]:
        if len(f"{lines[-1]} {part}".replace("\\-", "-")) > _USAGE_WIDTH:
            lines.append(f"{' ' * 8}{part}")
        else:
            lines[-1] += f" {part}"
    return "\n".join([".nf", *lines, ".fi", ""])


def write(directory: Path) -> None:
    """Write the files below *directory*."""
    for path, content in shell_files().items():
        place = directory / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

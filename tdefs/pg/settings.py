"""PostgreSQL's settings as the next start would find them, read from its files without asking a server.

The grammar is that of src/backend/utils/misc/guc-file.l; the order of precedence is that of the documentation
(20.1): postgresql.conf with what it includes, postgresql.auto.conf, the command line of the last start.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.private import read_regular

_LINE = re.compile(
    r"""\s* (?P<name> [A-Za-z_][A-Za-z0-9_$.]*) (?: \s* = \s* | \s+ )
        (?: ' (?P<quoted> (?: [^'\\] | '' | \\. )* ) ' | (?P<bare> [^\s'\#]+ ) )
        \s* (?: \#.* )? $""",
    re.VERBOSE,
)
_DEEPEST_INCLUDE = 10
_MOST_FILES = 1000
_MOST_BYTES = 16 << 20
_MOST_OPTIONS = 1 << 16

# parse_bool() of PostgreSQL also takes any unambiguous beginning of these words.
_TRUE = frozenset({"on", "true", "tru", "tr", "t", "yes", "ye", "y", "1"})


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as written, and where it was written."""

    value: str
    where: str

    @property
    def is_on(self) -> bool:
        """Whether it is a boolean that is on."""
        return self.value.lower() in _TRUE


def parse_settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield names, in lower case, and values of a configuration file. Skip what PostgreSQL would refuse."""
    for line in text.splitlines():
        if match := _LINE.match(line):
            quoted = match["quoted"]
            value = match["bare"] if quoted is None else re.sub(r"''|\\(.)", lambda m: m[1] or "'", quoted)
            yield match["name"].lower(), value


def read_settings(pgdata: Path) -> dict[str, Setting]:
    """Return all settings that files or the command line set for the cluster in *pgdata*."""
    command_line = dict(_command_line(pgdata))
    main = Path(command_line.get("config_file", pgdata / "postgresql.conf"))
    reader = _Reader()
    for path in (main, pgdata / "postgresql.auto.conf"):
        reader.read(path)
    found = reader.found
    for name, value in command_line.items():
        found[name] = Setting(value, "the command line of the last start")
    return found


class _Reader:
    """Reads the files of one cluster, up to a limit: the cluster's user may have written files without an end."""

    def __init__(self) -> None:
        self.found: dict[str, Setting] = {}
        self._files = _MOST_FILES
        self._bytes = _MOST_BYTES

    def read(self, path: Path, depth: int = 0) -> None:
        """Read a file and the files that it includes. Skip what has vanished, or is no file."""
        if depth > _DEEPEST_INCLUDE or self._files <= 0:
            return
        self._files -= 1
        with suppress(OSError):
            content = read_regular(path, self._bytes)
            self._bytes -= len(content)
            for name, value in parse_settings(content.decode("utf-8", "replace")):
                if name in ("include", "include_if_exists"):
                    self.read(path.parent / value, depth + 1)
                elif name == "include_dir":
                    for included in sorted((path.parent / value).glob("*.conf")):
                        self.read(included, depth + 1)
                else:
                    self.found[name] = Setting(value, str(path))


def _command_line(pgdata: Path) -> Iterator[tuple[str, str]]:
    """Yield the settings that postmaster.opts holds: ``-c name=value``, ``--name=value`` and ``-F``."""
    words: list[str] = []
    with suppress(OSError, ValueError):
        options = read_regular(pgdata / "postmaster.opts", _MOST_OPTIONS)
        words = shlex.split(options.decode("utf-8", "replace"))
    for before, word in zip(["", *words], words, strict=False):
        if before == "-c":
            assignment = word
        elif word == "-F":
            assignment = "fsync=off"
        else:
            assignment = next((word[2:] for option in ("--", "-c") if word.startswith(option)), "")
        name, equals, value = assignment.partition("=")
        if equals:
            yield name.replace("-", "_").lower(), value

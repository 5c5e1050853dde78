"""Printing for people and for programs: the text may hold any byte that a file name can hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tdefs.text import printable

Cell = str | int | None


def print_line(text: str = "") -> None:
    """Print one line; characters that the output's encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding))


def print_json(value: Any) -> None:
    """Print *value* as JSON in ASCII; stray bytes of a path are escaped surrogates, as Python reads them back."""
    print(json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, numbers: Sequence[str] = ()) -> None:
    """Print an aligned table, never shortened; ``None`` is shown as a dash.

    :param numbers: those of *headers* whose columns are aligned to the right.
    """
    cells = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    alignment = ["right" if header in numbers else "left" for header in headers]
    from tabulate import tabulate  # here, since most commands print no table, and it takes longer than they do

    # without an own colalign for an empty table, which tabulate refuses
    table = tabulate(
        cells,
        headers=list(headers),
        tablefmt="plain",
        disable_numparse=True,
        colalign=alignment if cells else None,
    )
    print_line(table)


def print_fields(fields: Iterable[tuple[str, Cell]]) -> None:
    """Print names and values, one pair a line, aligned."""
    pairs = [(name, "-" if value is None else printable(str(value))) for name, value in fields]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print_line(f"{name:<{width}}  {value}")

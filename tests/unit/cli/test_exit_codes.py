"""The documented exit codes are the ones that there are. Covers docs/EXIT-CODES.md."""

from __future__ import annotations

import re
from pathlib import Path

from tdefs.errors import Exit

DOCUMENT = Path(__file__).parents[3] / "docs" / "EXIT-CODES.md"


def test_documented_exit_codes_are_the_ones_there_are() -> None:
    rows = re.findall(r"^\| ([0-9]+) \| `([A-Z_]+)` \| \S", DOCUMENT.read_text(), re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(code.value, code.name) for code in Exit]

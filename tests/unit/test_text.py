"""What a terminal or a log gets of text that others wrote. Covers tdefs/text.py."""

from __future__ import annotations

import os

import pytest

from tdefs.text import masked, printable, printable_path, shortened

HOSTILE = "a\x1b[2J\nb\x00\x7f\u202e\u00a0c"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("base/5/16384 größe 表", "base/5/16384 größe 表"),
        ("back\\slash 'quoted'", "back\\slash 'quoted'"),
        (HOSTILE, "a\\x1b[2J\\nb\\x00\\x7f\\u202e\\xa0c"),
        (os.fsdecode(b"stray \xff"), "stray \\udcff"),
    ],
)
def test_only_what_is_not_printable_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_path_of_any_bytes_is_one_line_that_tells_them() -> None:
    assert printable_path("größe".encode()) == "größe"
    assert printable_path(b"a\xff\n\xc3") == "a\\xff\\n\\xc3"
    assert printable_path(bytes(range(256))).isprintable()


def test_long_text_is_shortened_before_it_is_escaped() -> None:
    assert shortened("x" * 64) == "x" * 64
    assert shortened("x" * 65) == "x" * 61 + "..."
    assert shortened("\n" * 65) == "\\n" * 61 + "..."


def test_masked_text_keeps_its_length() -> None:
    assert masked(HOSTILE) == "a?[2J?b????c"
    assert masked(HOSTILE, mask=" ") == "a [2J b    c"

"""A file's suite is chosen by the number in its header."""

from __future__ import annotations

import pytest

from tdefs.format.errors import UnsupportedFormat
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suites import DEFAULT_SUITE, SUITES, suite_of


def test_suite_1_is_the_only_one_and_that_of_new_files() -> None:
    assert {number: suite.name for number, suite in SUITES.items()} == {1: "aes-256-xts"}
    assert suite_of(1) is DEFAULT_SUITE


@pytest.mark.parametrize("number", [0, 2, 65535])
def test_an_unknown_number_is_named(number: int) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"cipher suite {number}; known are \[1\]"):
        suite_of(number)


def test_no_two_suites_derive_the_same_file_key() -> None:
    assert len({suite.file_key_purpose for suite in SUITES.values()}) == len(SUITES)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 8191, 8192, 8193, 1 << 30])
@pytest.mark.parametrize("number", SUITES)
def test_the_stored_size_gives_the_length(number: int, length: int) -> None:
    suite = suite_of(number)
    assert suite.stored_size(length) >= HEADER_SIZE + length
    assert suite.plaintext_length(suite.stored_size(length)) == length

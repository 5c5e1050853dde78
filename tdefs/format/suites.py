"""The cipher suites, chosen by the number in a file's header: what each stores where, and under which key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tdefs.format.content import Content, FileState, Store
from tdefs.format.errors import UnsupportedFormat
from tdefs.format.suite1 import Suite1


class Suite(Protocol):
    """How the files of one cipher suite are stored."""

    #: The number in the header, from 1 on. It never gets another meaning.
    number: int
    #: What people call it.
    name: str
    #: The beginning of the info of HKDF when a file key is derived; no two suites have the same.
    file_key_purpose: bytes
    #: The length of a file key in bytes.
    file_key_bytes: int

    def stored_size(self, length: int) -> int:
        """Return the stored size in bytes, header page included, of a file of *length* plaintext bytes."""

    def plaintext_length(self, size: int) -> int:
        """Return the plaintext length in bytes of a file of *size* stored bytes.

        :raises DamagedLength: no file of this suite has that size.
        """

    def content(
        self, store: Store, state: FileState, file_key: bytes, begin: Callable[[], bytes | None]
    ) -> Content:
        """Return the content of a file.

        :param store: its stored bytes, header page included.
        :param state: its length, and what else changes; the caller owns it.
        :param file_key: derived with this suite's purpose.
        :param begin: called each time before an empty file gets longer. It returns the file key to use from then
            on, if anything was ever encrypted under the present one. Its errors are ``OSError``.
        """


#: The suite of new files.
DEFAULT_SUITE: Suite = Suite1()
SUITES: dict[int, Suite] = {suite.number: suite for suite in (DEFAULT_SUITE,)}


def suite_of(number: int) -> Suite:
    """Return the suite with that *number*.

    :raises UnsupportedFormat: this tdefs does not know it.
    """
    try:
        return SUITES[number]
    except KeyError:
        raise UnsupportedFormat(f"the file has cipher suite {number}; known are {sorted(SUITES)}") from None

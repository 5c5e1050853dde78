"""Searching the bytes of all files below a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK = 16 << 20


def files_with(directory: Path, texts: Iterable[str], *, into_tablespaces: bool = False) -> dict[str, set[str]]:
    """Which files contain each text: ``{text: {path relative to the directory, ...}}``.

    A file's name counts as its content: names are on the disk in the clear. A file that goes away meanwhile is
    left out.

    :param into_tablespaces: also search directories that are there as symbolic links. Not for a backing directory:
        its links to tablespaces lead to a mount, where everything is in the clear.
    """
    needles = {text: text.encode() for text in texts}
    overlap = max(map(len, needles.values())) - 1
    found: dict[str, set[str]] = {text: set() for text in needles}
    for parent, _, names in os.walk(directory, followlinks=into_tablespaces):
        for path in (Path(parent, name) for name in names):
            relpath = str(path.relative_to(directory))
            for content in (relpath.encode(), *_chunks(path, overlap)):
                for text, needle in needles.items():
                    if relpath not in found[text] and needle in content:
                        found[text].add(relpath)
    return found


def _chunks(path: Path, overlap: int) -> Iterator[bytes]:
    """Yield the content in pieces that overlap: a text on a boundary is whole in one of them."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return
        with path.open("rb") as file:
            tail = b""
            while chunk := file.read(_CHUNK):
                yield tail + chunk
                tail = chunk[-overlap:] if overlap else b""
    except FileNotFoundError:
        return

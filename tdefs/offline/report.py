"""What checking a volume has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one file; ``blocks`` are block numbers of its relation fork, where that is what is."""

    path: str
    kind: str
    error: str
    hint: str
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Something to know that is no damage; ``path`` is empty where it concerns the whole volume."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What was left out for want of knowledge; ``path`` is the directory, empty for the volume's root."""

    path: str
    text: str
    hint: str


@dataclass(slots=True)
class Report:
    """What was found.

    ``checksums`` says for each cluster's directory ``on``, ``off`` or why it is unknown. ``pages`` were checked,
    ``unchecked_pages`` were not, for want of what pg_control says. The content of ``wal_files`` is never checked.
    ``unchecked`` says what was left out that could be checked if more were known.
    """

    states: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    unchecked_pages: int = 0
    wal_files: int = 0
    unchecked: list[Unchecked] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

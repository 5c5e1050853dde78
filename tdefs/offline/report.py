"""What the check of a volume has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with one file; ``blocks`` are the bad blocks of its relation fork, if that is it."""

    path: str
    kind: str
    error: str
    hint: str
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth knowing that is no damage; ``path`` is empty if it is about the whole volume."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What could not be checked, since something is unknown; ``path`` is the directory, empty for the root."""

    path: str
    text: str
    hint: str


@dataclass(slots=True)
class Report:
    """All that was found.

    ``checksums`` has, for each cluster's directory, ``on``, ``off`` or the reason why it is unknown. ``pages``
    were checked. ``unchecked_pages`` were not, since pg_control is not known. The content of ``wal_files`` is
    never checked. ``unchecked`` names what could be checked if more were known.
    """

    states: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    unchecked_pages: int = 0
    wal_files: int = 0
    unchecked: list[Unchecked] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

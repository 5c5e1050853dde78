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


@dataclass(slots=True)
class Report:
    """What was found; ``checksums`` says for each cluster's directory ``on``, ``off`` or why it is unknown."""

    states: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

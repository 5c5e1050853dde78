"""The findings of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    RISK = "risk"
    """Something that tdefs promises does not hold: durability, or that nothing is left in the clear."""
    ADVICE = "advice"
    """It could be faster, or easier to recover."""
    NOTE = "note"
    """Nothing is wrong, but worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, like an error message: what, and what to do."""

    level: Level
    what: str
    hint: str


def risk(what: str, hint: str) -> Finding:
    """Return a finding about a promise that does not hold."""
    return Finding(Level.RISK, what, hint)


def advice(what: str, hint: str) -> Finding:
    """Return a finding that breaks no promise."""
    return Finding(Level.ADVICE, what, hint)


def note(what: str, hint: str) -> Finding:
    """Return something to know."""
    return Finding(Level.NOTE, what, hint)

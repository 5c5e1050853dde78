"""What is measured, in which unit, and how it is compared with plain disk.       (pure)"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ratio(Enum):
    """How a system's value becomes a ratio to plain disk."""

    RATE = "rate"
    """A rate, such as transactions per second: value / plain; larger is better."""
    SPEED = "speed"
    """A duration, compared as a speed: plain / value; larger is better."""
    COST = "cost"
    """A duration or an amount, compared as it is: value / plain; smaller is better."""
    NONE = "none"
    """Not compared: plain disk has none of it, such as the daemon's memory."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a metric yields."""

    name: str
    """``metric.figure``, as in the JSON."""
    title: str
    unit: str
    ratio: Ratio

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger *ratio* is better."""
        return self.ratio in (Ratio.RATE, Ratio.SPEED)

    def ratio_to(self, plain: float, value: float) -> float | None:
        """Return the ratio of *value* to the one of plain disk; nothing where there is none."""
        if self.ratio is Ratio.NONE or plain <= 0 or value <= 0:
            return None
        return plain / value if self.ratio is Ratio.SPEED else value / plain

    def as_speed(self, ratio: float) -> float:
        """Return the ratio as a speed, where 1 is plain disk's and larger is better."""
        return ratio if self.larger_is_better else 1 / ratio

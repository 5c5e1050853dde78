"""Everything that one run has measured, and what follows from it: medians, spreads, ratios.       (pure)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

from benchmarks.figures import Figure

#: The version of the JSON's form.
FORMAT = 1
PLAIN = "plain"
#: Another state of tdefs, if one is measured.
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one metric yielded on one system in one round."""

    metric: str
    round: int
    system: str
    values: dict[str, float]
    """By the figure's name."""
    began: float
    """Seconds since the epoch."""
    load: float
    """The load average over one minute before it began: other work on the machine shows here."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A measurement that ended in an error."""

    metric: str
    round: int
    system: str
    error: str


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and their range."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of the values; nothing if there are none."""
        if not values:
            return None
        return cls(median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that *percent* of the values do not exceed.

    :raises ValueError: there are no values, or *percent* is not above 0 and at most 100.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@dataclass(slots=True)
class Results:
    """A run."""

    systems: list[str]
    figures: dict[str, Figure]
    facts: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """A system or a metric that was left out, and why."""

    def values(self, system: str, figure: str) -> dict[int, float]:
        """Return the value of each round."""
        return {
            measurement.round: measurement.values[figure]
            for measurement in self.measurements
            if measurement.system == system and figure in measurement.values
        }

    def spread(self, system: str, figure: str) -> Spread | None:
        """Return median and range of a figure's values."""
        return Spread.of(list(self.values(system, figure).values()))

    def ratio(self, system: str, figure: str, to: str = PLAIN) -> Spread | None:
        """Return median and range of a figure's ratios to another system, each to the value of the same round."""
        other = self.values(to, figure)
        ratios = [
            ratio
            for number, value in self.values(system, figure).items()
            if number in other and (ratio := self.figures[figure].ratio_to(other[number], value)) is not None
        ]
        return Spread.of(ratios)

    def median_ratios(self, figure: str) -> dict[str, float]:
        """Return the median ratio of each system that has one."""
        spreads = {system: self.ratio(system, figure) for system in self.systems if system != PLAIN}
        return {system: spread.median for system, spread in spreads.items() if spread}

    def measured_figures(self) -> list[Figure]:
        """Return the figures of which there is a value."""
        names = {name for measurement in self.measurements for name in measurement.values}
        return [figure for figure in self.figures.values() if figure.name in names]

    def as_json(self) -> dict[str, Any]:
        """Return facts, every round, and what follows from them."""
        return {
            "format": FORMAT,
            "facts": self.facts,
            "systems": self.systems,
            "skipped": self.skipped,
            "figures": {
                figure.name: {"title": figure.title, "unit": figure.unit, "ratio": figure.ratio.value}
                for figure in self.measured_figures()
            },
            "medians": self._summary(self.spread),
            "ratios": self._summary(self.ratio),
            "ratios_to_baseline": self._summary(partial(self.ratio, to=BASELINE)),
            "measurements": [asdict(measurement) for measurement in self.measurements],
            "failures": [asdict(failure) for failure in self.failures],
        }

    def _summary(self, spread: Any) -> dict[str, dict[str, dict[str, float]]]:
        return {
            figure.name: {
                system: asdict(found) for system in self.systems if (found := spread(system, figure.name))
            }
            for figure in self.measured_figures()
        }

"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Figure
from benchmarks.site import Site


class CannotMeasure(Exception):
    """This machine lacks what a metric needs, and what that is: the metric is left out, and nothing has failed."""


def nothing(_: Site) -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Something that is done on each system in turn, and the figures that it yields."""

    name: str
    """As in ``--only``."""
    figures: tuple[Figure, ...]
    measure: Callable[[Site], dict[str, float]]
    """Yields the figures' values, by the part of the name after the dot."""
    prepare: Callable[[Site], None] = nothing
    """Done once on each system, before the first round."""
    once: bool = False
    """Does not vary enough to be repeated in every round."""

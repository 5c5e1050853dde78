"""A metric that the machine cannot measure is left out once, with its reason, and is no failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from benchmarks.metrics.base import CannotMeasure, Metric
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.sizes import FULL


def test_a_metric_that_the_machine_cannot_measure_is_left_out_and_nothing_has_failed() -> None:
    asked: list[str] = []

    def refuse(site: Any) -> dict[str, float]:
        asked.append(site.name)
        raise CannotMeasure("there are no control groups")

    results = Results(["plain", "tdefs"], {})
    run = Run(cast(Any, None), results, FULL, rounds=5)
    run._sites = [cast(Any, SimpleNamespace(name=name)) for name in results.systems]
    run.measure([Metric("limited", (), refuse)])
    assert asked == ["plain"]
    assert results.skipped == {"limited": "there are no control groups"}
    assert results.failures == []

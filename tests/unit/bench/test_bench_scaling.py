"""How reads scale with the jobs that read at once: what the second plot shows."""

from __future__ import annotations

from benchmarks.metrics import METRICS
from benchmarks.metrics.reads import JOBS
from benchmarks.results import Measurement, Results
from benchmarks.scaling_plot import curves_of


def test_a_curve_has_the_median_of_the_rounds_for_each_number_of_jobs() -> None:
    results = Results(["plain", "tdefs", "encfs"], {figure.name: figure for figure in METRICS["random"].figures})
    for number, factor in enumerate((1, 2, 9)):
        for system in ("plain", "tdefs"):
            values = {f"random.cold{jobs}": 1000.0 * jobs * factor for jobs in JOBS}
            results.measurements.append(Measurement("random", number, system, values, began=0.0, load=0.0))
    curve = {jobs: 2.0 * jobs for jobs in JOBS}
    assert curves_of(results, "cold") == {"plain": curve, "tdefs": curve}
    assert curves_of(results, "cached") == {}

"""What the benchmark makes of its measurements: percentiles, medians, ratios, verdicts, JSON, tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.bars import BARS, Bar, judge
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics import METRICS
from benchmarks.report import report
from benchmarks.results import Failure, Measurement, Results, Spread, percentile

TPS = Figure("tpcb4.tps", "TPC-B, 4 clients", "tps", Ratio.RATE)
LOAD = Figure("load.seconds", "bulk load", "s", Ratio.SPEED)
COMMIT = Figure("commit.p50", "commit latency, p50", "ms", Ratio.COST)
MEMORY = Figure("memory.rest", "daemon's memory", "MB", Ratio.NONE)
ALL_FIGURES = {figure.name: figure for metric in METRICS.values() for figure in metric.figures}


def results_of(figure: Figure, values: dict[str, list[float]]) -> Results:
    """A run that measured one figure: the values of each system's rounds."""
    results = Results(list(values), {**ALL_FIGURES, figure.name: figure})
    for system, rounds in values.items():
        for number, value in enumerate(rounds):
            metric = figure.name.split(".")[0]
            results.measurements.append(
                Measurement(metric, number, system, {figure.name: value}, began=0.0, load=0.0)
            )
    return results


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (99.5, 100), (100, 100), (0.5, 1)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_of_nothing_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_spread_is_median_and_range() -> None:
    assert Spread.of([3.0, 1.0, 8.0, 2.0]) == Spread(2.5, 1.0, 8.0, 4)
    assert Spread.of([]) is None


@pytest.mark.parametrize(
    ("figure", "plain", "value", "expected"),
    [(TPS, 1000, 800, 0.8), (LOAD, 2, 4, 0.5), (COMMIT, 2, 3, 1.5), (MEMORY, 10, 20, None), (TPS, 0, 1, None)],
)
def test_ratio_is_a_speed_or_a_cost(figure: Figure, plain: float, value: float, expected: float | None) -> None:
    assert figure.ratio_to(plain, value) == expected


def test_every_ratio_as_a_speed_is_larger_when_better() -> None:
    assert TPS.as_speed(0.8) == LOAD.as_speed(0.8) == 0.8
    assert COMMIT.as_speed(1.25) == 0.8


def test_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine slowed down in the second round, for both: the ratio of the medians would be 0.75.
    results = results_of(TPS, {"plain": [1000, 500, 1000], "tdefs": [900, 450, 700]})
    assert results.ratio("tdefs", "tpcb4.tps") == Spread(0.9, 0.7, 0.9, 3)
    assert results.spread("tdefs", "tpcb4.tps") == Spread(700, 450, 900, 3)


def test_round_without_plain_disk_has_no_ratio() -> None:
    results = results_of(TPS, {"plain": [1000], "tdefs": [900, 100]})
    assert results.ratio("tdefs", "tpcb4.tps") == Spread(0.9, 0.9, 0.9, 1)
    assert results.ratio("encfs", "tpcb4.tps") is None


def test_every_bar_names_a_figure_with_a_ratio_of_its_direction() -> None:
    for bar in BARS:
        figure = ALL_FIGURES[bar.figure]
        assert figure.ratio is not Ratio.NONE
        assert bar.at_most == (not figure.larger_is_better)


@pytest.mark.parametrize(
    ("bar", "ratios", "said"),
    [
        (Bar("tpcb4.tps", 0.88), {"tdefs": 0.88, "gocryptfs": 0.7, "encfs": 0.6}, "reached"),
        (
            Bar("tpcb4.tps", 0.88),
            {"tdefs": 0.8, "gocryptfs": 0.9, "encfs": 0.8},
            "MISSED: 0.80 is not ≥ 0.88, not ahead of gocryptfs, not ahead of encfs",
        ),
        (Bar("commit.p50", 1.5, at_most=True), {"tdefs": 1.4, "gocryptfs": 1.6, "encfs": 2}, "reached"),
        (
            Bar("commit.p50", 1.5, at_most=True),
            {"tdefs": 1.4, "gocryptfs": 1.3, "encfs": 2},
            "MISSED: not ahead of gocryptfs",
        ),
        (Bar("tpcb4.tps", 0.88), {"tdefs": 0.9, "encfs": 0.6}, "reached (no ratio of gocryptfs)"),
        (Bar("tpcb4.tps", 0.88), {"gocryptfs": 0.9}, "not measured"),
    ],
)
def test_verdict_needs_the_limit_and_a_lead(bar: Bar, ratios: dict[str, float], said: str) -> None:
    verdict = judge(bar, ratios)
    assert str(verdict) == said
    assert verdict.is_reached == said.startswith("reached")


def test_json_holds_every_round_and_what_follows() -> None:
    results = results_of(TPS, {"plain": [1000, 1000], "tdefs": [900, 800]})
    results.failures.append(Failure("load", 0, "tdefs", "the mount ended"))
    written = json.loads(json.dumps(results.as_json()))
    assert [entry["values"]["tpcb4.tps"] for entry in written["measurements"]] == [1000, 1000, 900, 800]
    assert written["ratios"]["tpcb4.tps"]["tdefs"]["median"] == pytest.approx(0.85)
    assert written["medians"]["tpcb4.tps"]["plain"]["median"] == 1000
    assert written["failures"][0]["error"] == "the mount ended"
    assert set(written["figures"]) == {"tpcb4.tps"}


def test_report_shows_ratios_bars_and_failures() -> None:
    results = results_of(TPS, {"plain": [1000, 1000], "tdefs": [900, 800], "encfs": [500, 500]})
    results.failures.append(Failure("load", 0, "tdefs", "the mount ended"))
    results.skipped["fscrypt"] = "the kernel has no ext4"
    text = report(results)
    assert "0.85 (0.80 to 0.90)" in text
    assert "MISSED: 0.85 is not ≥ 0.88" in text
    assert "load on tdefs, round 1: the mount ended" in text
    assert "fscrypt: the kernel has no ext4" in text


def test_tdefs_is_compared_with_the_baseline_round_by_round() -> None:
    """A machine that slows down slows both: each ratio is to the value of the same round."""
    results = results_of(LOAD, {"plain": [1, 1], "tdefs": [2, 8], "baseline": [4, 16]})
    assert results.ratio("tdefs", LOAD.name, "baseline") == Spread(2, 2, 2, 2)
    assert results.as_json()["ratios_to_baseline"][LOAD.name]["tdefs"]["median"] == 2
    table = report(results).partition("Ratio of tdefs to the baseline")[2]
    assert next(line for line in table.splitlines() if "bulk load" in line).endswith("2.00 (2.00 to 2.00)")
    assert "Ratio of tdefs to the baseline" not in report(results_of(LOAD, {"plain": [1], "tdefs": [2]}))

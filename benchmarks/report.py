"""The tables that a run prints.       (pure)"""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from benchmarks.bars import BARS, judge
from benchmarks.figures import Figure, Ratio
from benchmarks.results import BASELINE, PLAIN, Results, Spread


def report(results: Results) -> str:
    """Return everything a reader needs to judge the figures."""
    sections = [
        ("The machine", _machine(results.facts)),
        ("PostgreSQL's settings, the same for all", _settings(results.facts)),
        ("How each system was set up", _set_up(results)),
        (_RATIOS, _ratios(results)),
        (_CHANGES, _changes(results)),
        ("Values: median (least to most)", _values(results)),
        ("The bars", _bars(results)),
        ("Left out", "\n".join(f"{name}: {reason}" for name, reason in results.skipped.items())),
        ("Failures", _failures(results)),
    ]
    return "\n\n".join(f"{title}\n\n{body}" for title, body in sections if body) + "\n"


_RATIOS = (
    "Ratio to plain disk: median of the rounds' ratios (least to most)\n"
    "↑ speed, larger is better; ↓ cost, smaller is better; plain disk: its own median"
)

_CHANGES = "Ratio of tdefs to the baseline: median of the rounds' ratios (least to most); ↑ ↓ as above"

_NONE = "-"


def _machine(facts: dict[str, Any]) -> str:
    rows = [(name, value) for name, value in facts.items() if not isinstance(value, dict)]
    rows += list(facts.get("versions", {}).items())
    return tabulate([(name, str(value)) for name, value in rows], tablefmt="plain", disable_numparse=True)


def _settings(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in facts.get("settings", {}).items())


def _set_up(results: Results) -> str:
    rows = [
        (name, how.get("set_up"), how.get("set_up_chosen"))
        for name, how in results.facts.get("systems", {}).items()
    ]
    return tabulate(rows, ["system", "set-up", "chosen"])


def _ratios(results: Results) -> str:
    others = [system for system in results.systems if system != PLAIN]
    rows = [
        [
            f"{'↑' if figure.larger_is_better else '↓'} {figure.title}",
            _value(figure, results.spread(PLAIN, figure.name)),
            *(_spread(results.ratio(system, figure.name), ".2f") for system in others),
        ]
        for figure in results.measured_figures()
        if figure.ratio is not Ratio.NONE
    ]
    return tabulate(rows, ["", "plain disk", *others], disable_numparse=True)


def _changes(results: Results) -> str:
    """Return the table of tdefs and the baseline, and nothing if none was measured."""
    if BASELINE not in results.systems:
        return ""
    rows = [
        [
            f"{'↑' if figure.larger_is_better else '↓'} {figure.title}",
            _value(figure, results.spread(BASELINE, figure.name)),
            _value(figure, results.spread("tdefs", figure.name)),
            _spread(results.ratio("tdefs", figure.name, BASELINE), ".2f"),
        ]
        for figure in results.measured_figures()
        if figure.ratio is not Ratio.NONE
    ]
    return tabulate(rows, ["", BASELINE, "tdefs", "ratio"], disable_numparse=True)


def _values(results: Results) -> str:
    rows = [
        [
            figure.title,
            figure.unit,
            *(_spread(results.spread(system, figure.name), ".4g") for system in results.systems),
        ]
        for figure in results.measured_figures()
    ]
    return tabulate(rows, ["", "unit", *results.systems], disable_numparse=True)


def _bars(results: Results) -> str:
    verdicts = [(bar, judge(bar, results.median_ratios(bar.figure))) for bar in BARS]
    rows = [
        [
            results.figures[bar.figure].title,
            str(bar),
            "" if verdict.ratio is None else f"{verdict.ratio:.2f}",
            str(verdict),
        ]
        for bar, verdict in verdicts
    ]
    reached = sum(verdict.is_reached for _, verdict in verdicts)
    table = tabulate(rows, ["", "bar", "tdefs", "verdict"], disable_numparse=True)
    return f"{table}\n\n{reached} of {len(BARS)} bars reached"


def _failures(results: Results) -> str:
    return "\n".join(
        f"{failure.metric} on {failure.system}, round {failure.round + 1}: {failure.error}"
        for failure in results.failures
    )


def _value(figure: Figure, spread: Spread | None) -> str:
    return f"{spread.median:.4g} {figure.unit}" if spread else _NONE


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return _NONE
    if spread.rounds == 1:
        return f"{spread.median:{form}}"
    return f"{spread.median:{form}} ({spread.least:{form}} to {spread.most:{form}})"

"""The plot of how reads scale: requests a second against the jobs that read at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.metrics.reads import JOBS
from benchmarks.plot import COLOURS, STYLE, WIDTH, CannotPlot, load_library, save
from benchmarks.results import PLAIN, Results

_HEIGHT = 3.4
#: The part of the figures' names, and the title of the panel.
_PANELS = {"cold": "cold: every read reaches the disk", "cached": "cached: no read leaves the kernel"}
_COLOURS = {PLAIN: "#000000", **COLOURS}


def draw(results: Results, path: Path) -> list[Path]:
    """Draw the plot as SVG and PNG; return the files, which have ``-jobs`` in their names.

    :param path: the other plot's
    :raises CannotPlot: matplotlib is missing, or no reads were measured.
    """
    pyplot = load_library()
    curves = {part: curves_of(results, part) for part in _PANELS}
    if not any(curves.values()):
        raise CannotPlot("no random reads were measured")
    pyplot.rcParams.update(STYLE)
    figure, panels = pyplot.subplots(1, len(_PANELS), figsize=(WIDTH, _HEIGHT), layout="constrained")
    for axes, (part, title) in zip(panels, _PANELS.items(), strict=True):
        _draw_curves(axes, curves[part])
        _finish(axes, title)
    panels[0].set_ylabel("8 KB random reads, thousands per second")
    names = [system for system in _COLOURS if any(system in found for found in curves.values())]
    lines = [pyplot.Line2D([], [], color=_COLOURS[name], marker="o", markersize=3, label=name) for name in names]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(names), frameon=False)
    return save(pyplot, figure, path.with_name(f"{path.stem}-jobs"))


def curves_of(results: Results, part: str) -> dict[str, dict[int, float]]:
    """Return the median of each system's thousands of reads per second, by the number of jobs.       (pure)

    :param part: ``cold`` or ``cached``
    """
    found = {
        system: {
            jobs: spread.median / 1000
            for jobs in JOBS
            if (spread := results.spread(system, f"random.{part}{jobs}"))
        }
        for system in results.systems
        if system in _COLOURS
    }
    return {system: curve for system, curve in found.items() if curve}


def _draw_curves(axes: Any, curves: dict[str, dict[int, float]]) -> None:
    for system, curve in curves.items():
        axes.plot(
            list(curve), list(curve.values()), color=_COLOURS[system], marker="o", markersize=3, linewidth=1.4
        )


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(JOBS, [str(jobs) for jobs in JOBS])
    axes.set_ylim(bottom=0)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("jobs that read at once")

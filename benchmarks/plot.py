"""The plot of a run: how near each system is to plain disk."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS
from benchmarks.figures import Ratio
from benchmarks.results import Results

#: The width that GitHub gives a README's pictures, in inches of 100 pixels.
WIDTH = 8.8
_GROUP_HEIGHT = 0.52
_EDGES_HEIGHT = 1.15
#: Where a bar is cut: beyond plain disk the differences are noise.
_RIGHT = 1.25
#: Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = {"tdefs": "#0072B2", "gocryptfs": "#E69F00", "encfs": "#CC79A7", "fscrypt": "#999999"}
STYLE = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "tdefs"}
#: What the plot shows, in its order.
_SHOWN = (
    *("tpcb1.tps", "tpcb4.tps", "tpcb16.tps", "select4.tps", "commit.p50", "connect.tps"),
    *("load.seconds", "copy.seconds", "ctas.seconds", "vacuum_full.seconds", "checkpoint.seconds"),
    *("random.cold1", "random.cold4", "random.cold16", "cold_index.tps", "cold_index4.tps", "limited_index.tps"),
    *("cold_scan.seconds", "cold_scan2.seconds", "wal_write.seconds", "wal_replay.seconds", "initdb.seconds"),
    *("ddl.create", "ddl.drop", "ddl.database", "files.list"),
)


class CannotPlot(Exception):
    """The library is missing, or there is nothing to draw."""


def load_library() -> Any:
    """Return matplotlib's pyplot.

    :raises CannotPlot: it is not installed.
    """
    # By name: it is not there for those who only check the types, who have not asked for the extra "bench".
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise CannotPlot(f"matplotlib is not installed ({error}): pip install -e '.[bench]'") from error


def draw(results: Results, path: Path) -> list[Path]:
    """Draw the plot as SVG and PNG; return the files.

    :param path: with either suffix, or none
    :raises CannotPlot: matplotlib is missing, or nothing has a ratio.
    """
    pyplot = load_library()
    systems = [system for system in results.systems if system in COLOURS]
    speeds = {name: speed for name in _SHOWN if (speed := _speeds(results, name, systems))}
    if not speeds:
        raise CannotPlot("nothing has a ratio to plain disk")
    pyplot.rcParams.update(STYLE)
    height = _EDGES_HEIGHT + _GROUP_HEIGHT * len(speeds)
    figure, axes = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    _draw_groups(axes, systems, speeds)
    _draw_bars_to_reach(axes, results, list(speeds))
    _finish(axes, [results.figures[name].title for name in speeds])
    return save(pyplot, figure, path)


def save(pyplot: Any, figure: Any, path: Path) -> list[Path]:
    """Write a drawing as SVG and PNG, and close it; return the files."""
    files = [path.with_suffix(suffix) for suffix in (".svg", ".png")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        # without the date: the same figures make the same file
        figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else {})
    pyplot.close(figure)
    return files


def _speeds(results: Results, name: str, systems: list[str]) -> dict[str, tuple[float, float, float]]:
    """The median, least and most of each system's speed, where 1 is plain disk's."""
    figure = results.figures[name]
    assert figure.ratio is not Ratio.NONE  # noqa: S101
    found = {}
    for system in systems:
        if spread := results.ratio(system, name):
            least, most = sorted((figure.as_speed(spread.least), figure.as_speed(spread.most)))
            found[system] = (figure.as_speed(spread.median), least, most)
    return found


def _draw_groups(axes: Any, systems: list[str], speeds: dict[str, dict[str, tuple[float, float, float]]]) -> None:
    thickness = 0.8 / len(systems)
    for place, system in enumerate(systems):
        rows = [(number, found[system]) for number, found in enumerate(speeds.values()) if system in found]
        heights = [number + (place - (len(systems) - 1) / 2) * thickness for number, _ in rows]
        medians = [median for _, (median, _, _) in rows]
        axes.barh(
            heights,
            [min(median, _RIGHT) for median in medians],
            thickness,
            label=system,
            color=COLOURS[system],
            xerr=[[m - least for _, (m, least, _) in rows], [most - m for _, (m, _, most) in rows]],
            error_kw={"elinewidth": 0.7, "ecolor": "#444444"},
            zorder=2,
        )
        if system == "tdefs":
            for height, median in zip(heights, medians, strict=True):
                axes.text(0.012, height, f"{median:.2f}", va="center", color="white", fontsize=7, zorder=4)


def _draw_bars_to_reach(axes: Any, results: Results, names: list[str]) -> None:
    limits = {bar.figure: results.figures[bar.figure].as_speed(bar.limit) for bar in BARS}
    marked = [(number, limits[name]) for number, name in enumerate(names) if name in limits]
    for number, limit in marked:
        axes.plot([limit, limit], [number - 0.42, number + 0.42], color="black", linewidth=1.2, zorder=3)
    if marked:
        axes.plot([], [], color="black", linewidth=1.2, label="tdefs's bar")


def _finish(axes: Any, titles: list[str]) -> None:
    axes.axvline(1, color="#444444", linewidth=0.8, linestyle="--", zorder=1)
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlim(0, _RIGHT)
    axes.set_ylim(len(titles) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("speed, where 1 is plain disk (median of the rounds; lines: least to most)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.0), ncols=5, frameon=False, borderaxespad=-2.2)

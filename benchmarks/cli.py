"""The command line of ``scripts/bench``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks import host, plot, scaling_plot
from benchmarks.metrics import METRICS
from benchmarks.metrics.base import Metric
from benchmarks.progress import say
from benchmarks.report import report
from benchmarks.results import BASELINE, PLAIN, Results
from benchmarks.run import PlainDiskFailed, Run
from benchmarks.sizes import FULL, QUICK
from benchmarks.systems import SYSTEMS, systems_with
from benchmarks.systems.tdefs import program_of
from benchmarks.workdir import WorkDirectory
from tests.support.postgres import distribution

_VERSION = "15"
_OUTPUT = Path("build/bench")
_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures PostgreSQL on plain disk, tdefs and its peers, in one run on one disk. "
        "docs/PERFORMANCE.md says what is measured, and how to read it.",
    )
    made.add_argument("--quick", action="store_true", help="less of everything: ends within 5 minutes, is noisy")
    made.add_argument(
        "--rounds", type=_rounds, metavar="N", help=f"default: {FULL.rounds}, with --quick {QUICK.rounds}"
    )
    made.add_argument("--only", type=_metrics, default=list(METRICS), metavar="METRIC,…", help=", ".join(METRICS))
    made.add_argument(
        "--systems", type=_systems, default=list(SYSTEMS), metavar="SYSTEM,…", help=", ".join(SYSTEMS)
    )
    made.add_argument(
        "--baseline",
        type=Path,
        metavar="CHECKOUT",
        help="measure the tdefs of another checkout too, which its scripts/setup.sh has set up: the system "
        f'"{BASELINE}", in the same rounds, beside tdefs',
    )
    made.add_argument(
        "--output",
        type=Path,
        default=_OUTPUT,
        metavar="DIR",
        help=f"for bench.json and bench.txt; default: {_OUTPUT}",
    )
    made.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw FILE.svg and FILE.png too, e.g. docs/bench.svg, and FILE-jobs: how reads scale with clients",
    )
    made.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),  # noqa: S108
        metavar="DIR",
        help="on the disk to measure; default: %(default)s",
    )
    return made


def main(words: list[str]) -> int:
    """Run the benchmark; return the exit code: 0, 1 if something failed, 130 if it was interrupted."""
    args = parser().parse_args(words)
    sizes = QUICK if args.quick else FULL
    if problem := _problem(args, sizes.free_gb):
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    _warn_of_other_work()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    installation = distribution(_VERSION)
    figures = {figure.name: figure for metric in METRICS.values() for figure in metric.figures}
    systems = systems_with(args.baseline)
    results = Results(measured(args), figures, host.facts(args.dir, installation, args.baseline))
    rounds = args.rounds or sizes.rounds
    results.facts["rounds"], results.facts["quick"] = rounds, args.quick
    code = 0
    try:
        with WorkDirectory(args.dir, installation, sizes, systems) as work:
            run = Run(work, results, sizes, rounds)
            run.set_up()
            run.measure([METRICS[name] for name in args.only])
    except KeyboardInterrupt:
        say("interrupted")
        code = _INTERRUPTED
    except PlainDiskFailed as error:
        print(f"bench: plain disk does not work: {error}", file=sys.stderr)
        code = 1
    # a plot is for others to see: not of half a run
    _write(results, args.output, args.plot if code == 0 else None)
    return code or (1 if results.failures else 0)


def measured(args: argparse.Namespace) -> list[str]:
    """Return the names of the systems to measure, in their order: the baseline is beside tdefs."""
    chosen: list[str] = list(args.systems)
    if args.baseline is not None:
        chosen.insert(chosen.index("tdefs") + 1 if "tdefs" in chosen else len(chosen), BASELINE)
    return chosen


def _write(results: Results, output: Path, picture: Path | None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    text = report(results)
    (output / "bench.txt").write_text(text)
    (output / "bench.json").write_text(json.dumps(results.as_json(), indent=1) + "\n")
    print(text)
    say(f"written to {output}/bench.txt and bench.json")
    if picture is not None:
        for draw in (plot.draw, scaling_plot.draw):
            try:
                say(f"drawn: {', '.join(map(str, draw(results, picture)))}")
            except plot.CannotPlot as error:
                print(f"bench: no plot: {error}", file=sys.stderr)


def _problem(args: argparse.Namespace, needed_gb: int) -> str | None:
    """What makes it senseless to begin."""
    if os.geteuid() != 0:
        return "must run as root: it mounts file systems and drops the kernel's caches"
    if not args.dir.is_dir():
        return f'"{args.dir}" is not a directory'
    if (free := host.free_gb(args.dir)) < needed_gb:
        return f'"{args.dir}" has {free:.0f} GB free, {needed_gb} GB are needed'
    if args.baseline is not None and not os.access(program_of(args.baseline), os.X_OK):
        return f'"{args.baseline}" has no .venv/bin/tdefs: run its scripts/setup.sh'
    if args.plot is not None:
        try:
            plot.load_library()
        except plot.CannotPlot as error:
            return str(error)
    return None


def _warn_of_other_work() -> None:
    if (load := os.getloadavg()[0]) > host.QUIET_LOAD:
        say(f"WARNING: the load average is {load:.2f}: other work makes the figures worthless")


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of rounds')
    return int(text)


def _metrics(text: str) -> list[str]:
    wanted = _names(text, METRICS, "metric")
    return [name for name in METRICS if name in wanted]


def _systems(text: str) -> list[str]:
    wanted = _names(text, SYSTEMS, "system")
    # without it there is nothing to compare with
    return [name for name in SYSTEMS if name in wanted or name == PLAIN]


def _names(text: str, known: dict[str, Metric] | dict[str, type], kind: str) -> set[str]:
    names = {name.strip() for name in text.split(",")}
    if unknown := sorted(names - set(known)):
        raise argparse.ArgumentTypeError(f'there is no {kind} "{unknown[0]}"; there are: {", ".join(known)}')
    return names

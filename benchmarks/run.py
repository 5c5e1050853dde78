"""The rounds: every metric on every system in turn, the order turned round in every other round."""

from __future__ import annotations

import os
import time

from benchmarks import calibration
from benchmarks.bars import BARS
from benchmarks.metrics import METRICS
from benchmarks.metrics.base import CannotMeasure, Metric
from benchmarks.progress import elapsed, say
from benchmarks.results import BASELINE, PLAIN, Failure, Measurement, Results
from benchmarks.site import SETTINGS, Site
from benchmarks.sizes import Sizes
from benchmarks.systems.base import Unavailable
from benchmarks.workdir import WorkDirectory

_ROUNDS_WITHOUT_BAR = 3


class PlainDiskFailed(Exception):
    """Plain disk does not work: there is nothing to compare with."""


class Run:
    """One run. All servers are up at once, one is under load."""

    def __init__(self, work: WorkDirectory, results: Results, sizes: Sizes, rounds: int) -> None:
        self._work = work
        self._results = results
        self._sizes = sizes
        self._rounds = rounds
        self._sites: list[Site] = []

    def set_up(self) -> None:
        """Open every system that works here.

        :raises PlainDiskFailed: plain disk is not among them.
        """
        facts = self._results.facts
        facts["settings"] = SETTINGS
        facts["systems"] = {}
        for name in list(self._results.systems):
            say(f"setting up {name}")
            try:
                variant, why = calibration.fastest_variant(self._work, name, self._sizes)
                site = self._work.site(name, variant)
                site.open()
                facts["systems"][name] = {"set_up": str(variant), "set_up_chosen": why}
                self._sites.append(site)
            except Exception as error:
                # a peer that does not work here is no failure
                if name in ("tdefs", BASELINE) or not isinstance(error, Unavailable):
                    self._results.failures.append(Failure("set-up", 0, name, _described(error)))
                self._leave_out(name, str(error))
        if not any(site.name == PLAIN for site in self._sites):
            raise PlainDiskFailed(self._results.skipped[PLAIN])

    def measure(self, metrics: list[Metric]) -> None:
        """Measure each metric in all its rounds."""
        for metric in metrics:
            for number in range(self._rounds_of(metric)):
                for site in self._sites if number % 2 == 0 else self._sites[::-1]:
                    if self._sizes.limit is not None and elapsed() > self._sizes.limit:
                        self._results.skipped.setdefault(metric.name, "the time was up")
                    elif site in self._sites and metric.name not in self._results.skipped:
                        self._measure(metric, number, site)

    def _rounds_of(self, metric: Metric) -> int:
        """Return how often a metric is measured: those that nothing is judged by, not as often as the others."""
        if metric.once:
            return 1
        judged = any(figure.name == bar.figure for figure in metric.figures for bar in BARS)
        return self._rounds if judged else min(self._rounds, _ROUNDS_WITHOUT_BAR)

    def _measure(self, metric: Metric, number: int, site: Site) -> None:
        try:
            if number == 0:
                metric.prepare(site)
            began, load = time.time(), os.getloadavg()[0]
            values = metric.measure(site)
        except CannotMeasure as error:
            self._leave_out(metric.name, str(error))
            return
        except Exception as error:
            say(f"{metric.name} on {site.name}: {type(error).__name__}")
            self._results.failures.append(Failure(metric.name, number, site.name, _described(error)))
            self._recover(site)
            return
        named = {f"{metric.name}.{figure}": value for figure, value in values.items()}
        self._results.measurements.append(Measurement(metric.name, number, site.name, named, began, load))
        main = next(iter(named), None)
        if main:
            unit = METRICS[metric.name].figures[0].unit
            took = time.time() - began
            say(f"{metric.name} round {number + 1}: {site.name} {named[main]:.5g} {unit} ({took:.1f} s)")

    def _recover(self, site: Site) -> None:
        """Get the server back after an error, or leave the system out from now on."""
        try:
            if not site.server.is_running:
                site.start()
            site.psql("SELECT 1")
        except Exception as error:
            self._sites.remove(site)
            self._leave_out(site.name, f"its server does not come back: {_described(error)[:2000]}")

    def _leave_out(self, name: str, reason: str) -> None:
        say(f"{name} is left out: {reason}")
        self._results.skipped[name] = reason


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

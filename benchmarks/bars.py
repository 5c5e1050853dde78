"""The bars that tdefs has to reach, in one table, and the verdict on each.       (pure)"""

from __future__ import annotations

from dataclasses import dataclass

#: The peers that every figure with a bar must be ahead of. Kernel fscrypt is measured, but is no bar: its speed is
#: that of the kernel's AES, which not every kernel has accelerated.
PEERS = ("gocryptfs", "encfs")


@dataclass(frozen=True, slots=True)
class Bar:
    """How near to plain disk the median ratio of one figure must be."""

    figure: str
    limit: float
    at_most: bool = False
    """The ratio is a cost, and must not be above the limit."""

    def holds(self, ratio: float) -> bool:
        """Return whether a ratio reaches the bar."""
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def is_ahead(self, ratio: float, peer: float) -> bool:
        """Return whether a ratio is better than a peer's."""
        return ratio < peer if self.at_most else ratio > peer

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:.2f}"


BARS = (
    Bar("tpcb4.tps", 0.88),
    Bar("tpcb1.tps", 0.92),
    Bar("select4.tps", 0.98),
    Bar("commit.p50", 1.5, at_most=True),
    Bar("load.seconds", 0.75),
    Bar("ctas.seconds", 0.75),
    Bar("cold_scan.seconds", 0.80),
    Bar("checkpoint.seconds", 0.60),
    Bar("connect.tps", 0.90),
    Bar("wal_replay.seconds", 0.70),
    Bar("initdb.seconds", 2.0, at_most=True),
    Bar("random.cold1", 0.75),
    Bar("random.cold4", 0.75),
    Bar("random.cold16", 0.75),
    Bar("cold_index.tps", 0.80),
    Bar("cold_index4.tps", 0.80),
    Bar("page_cache.for_byte", 1.05, at_most=True),
    Bar("limited_index.tps", 0.90),
    Bar("tpcb16.tps", 0.95),
    Bar("cold_scan2.seconds", 0.85),
    Bar("ddl.create", 0.60),
    Bar("ddl.drop", 0.60),
    Bar("ddl.database", 0.60),
    Bar("files.list", 0.50),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one bar."""

    bar: Bar
    ratio: float | None
    """tdefs's median; nothing if it was not measured."""
    behind: tuple[str, ...]
    """The peers that are as good or better."""
    unmeasured: tuple[str, ...]
    """The peers that have no ratio."""

    @property
    def is_reached(self) -> bool:
        return self.ratio is not None and self.bar.holds(self.ratio) and not self.behind

    def __str__(self) -> str:
        if self.ratio is None:
            return "not measured"
        faults = [] if self.bar.holds(self.ratio) else [f"{self.ratio:.2f} is not {self.bar}"]
        faults += [f"not ahead of {peer}" for peer in self.behind]
        said = f"MISSED: {', '.join(faults)}" if faults else "reached"
        return said + (f" (no ratio of {', '.join(self.unmeasured)})" if self.unmeasured else "")


def judge(bar: Bar, ratios: dict[str, float]) -> Verdict:
    """Judge one bar.

    :param ratios: the median ratio to plain disk of each system that has one
    """
    ratio = ratios.get("tdefs")
    behind = tuple(
        peer for peer in PEERS if ratio is not None and peer in ratios and not bar.is_ahead(ratio, ratios[peer])
    )
    return Verdict(bar, ratio, behind, tuple(peer for peer in PEERS if peer not in ratios))

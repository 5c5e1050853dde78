"""The command line of the benchmark: what it takes and what it refuses, before anything is set up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.cli import measured, parser
from benchmarks.metrics import METRICS
from benchmarks.results import BASELINE
from benchmarks.systems import SYSTEMS, VARIANTS, systems_with
from benchmarks.systems.tdefs import Tdefs


def test_everything_is_measured_unless_asked_otherwise() -> None:
    args = parser().parse_args([])
    assert args.only == list(METRICS)
    assert args.systems == ["plain", "tdefs", "gocryptfs", "encfs", "fscrypt"]
    assert args.rounds is None


def test_metrics_keep_their_own_order() -> None:
    assert parser().parse_args(["--only", "load, tpcb4"]).only == ["tpcb4", "load"]


def test_plain_disk_is_always_measured() -> None:
    assert parser().parse_args(["--systems", "tdefs"]).systems == ["plain", "tdefs"]


def test_every_system_has_a_variant(tmp_path: Path) -> None:
    assert all(VARIANTS[name] for name in systems_with(tmp_path))


def test_a_baseline_is_measured_beside_tdefs_by_the_program_of_its_checkout(tmp_path: Path) -> None:
    words = ["--systems", "tdefs,encfs", "--baseline", str(tmp_path)]
    assert measured(parser().parse_args(words)) == ["plain", "tdefs", BASELINE, "encfs"]
    baseline = systems_with(tmp_path)[BASELINE]
    assert issubclass(baseline, Tdefs)
    assert baseline.executable == tmp_path / ".venv/bin/tdefs"
    assert Tdefs.executable != tmp_path / ".venv/bin/tdefs"
    assert measured(parser().parse_args([])) == list(SYSTEMS) == list(systems_with(None))


def test_a_baseline_that_is_not_set_up_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("benchmarks.host.free_gb", lambda _: 1000)
    assert cli.main(["--baseline", str(tmp_path)]) == 2
    assert f'"{tmp_path}" has no .venv/bin/tdefs: run its scripts/setup.sh' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "speed"], 'there is no metric "speed"'),
        (["--only", ""], 'there is no metric ""'),
        (["--systems", "plain,ecryptfs"], 'there is no system "ecryptfs"'),
        (["--rounds", "0"], '"0" is not a number of rounds'),
        (["--rounds", "many"], '"many" is not a number of rounds'),
        (["--slow"], "unrecognized arguments: --slow"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parser().parse_args(words)
    assert error.value.code == 2
    assert said in capsys.readouterr().err


def test_figures_are_named_after_their_metric_and_unique() -> None:
    names = [figure.name for metric in METRICS.values() for figure in metric.figures]
    assert len(names) == len(set(names))
    assert all(figure.name.startswith(f"{name}.") for name, metric in METRICS.items() for figure in metric.figures)

"""scripts/pg-regress.sh --tap: PostgreSQL's suite of logical replication passes on an encrypted mount.

A usual run takes the files of it that do most to the files below; ``scripts/test.sh --whole`` takes all of them.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.suites.tap_build import prepare
from tests.suites.tap_run import FileTally, TapTally
from tests.support.whole import WHOLE

REPOSITORY = Path(__file__).parents[2]
#: Seconds after which it hangs.
LIMIT = 2400
#: Rows and tables copied, rewrites, truncation, changes that spill to files on both sides, prepared transactions,
#: statistics that outlive a restart. Each has two clusters or three.
SHORT = (
    "001_rep_changes.pl",
    "004_sync.pl",
    "006_rewrite.pl",
    "010_truncate.pl",
    "015_stream.pl",
    "018_stream_subxact_abort.pl",
    "021_twophase.pl",
    "026_stats.pl",
)
#: Single tests that the files have at least.
FEWEST_TESTS = 300 if WHOLE else 90


@pytest.mark.slow(seconds=480 if WHOLE else 180)
def test_subscription_suite_of_postgres_passes_on_a_mount_with_no_file_left_out() -> None:
    chosen = [] if WHOLE else [word for name in SHORT for word in ("--only", name)]
    done = subprocess.run(
        ["bash", REPOSITORY / "scripts" / "pg-regress.sh", "--tap", "subscription", "--jobs", "4", *chosen],
        cwd="/var/tmp",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    said = done.stdout[-20_000:] + done.stderr[-20_000:]
    assert done.returncode == 0, said
    files = [path.name for path in prepare("15").files("subscription")]
    assert len(files) > 25
    if not WHOLE:
        assert set(SHORT) < set(files)
        files = list(SHORT)
    ran = re.findall(r"^ok - subscription/(\S+): ", done.stdout, re.MULTILINE)
    assert sorted(ran) == files, said
    tally = re.search(
        r"^=== subscription: (\d+) files \(0 failed, .* (\d+) passed, 0 failed", done.stdout, re.MULTILINE
    )
    assert tally, said
    assert int(tally[1]) == len(files)
    assert int(tally[2]) > FEWEST_TESTS


def tally(*lines: str, exit_code: int = 0) -> FileTally:
    found = FileTally("001.pl", exit_code)
    for line in lines:
        found.note(line)
    return found


def test_a_point_is_counted_as_what_it_is() -> None:
    found = tally(
        "# Subtest: inner",
        "    not ok 1 - of a subtest",
        "ok 1 - inner",
        "not ok 2 - not yet # TODO later",
        "ok 3 # skip no such thing here",
        "ok 4 - with a # in its name",
        "not ok 5 - broken",
        "1..5",
    )
    assert (found.passed, found.skipped, found.failed, found.planned) == (3, 1, ["broken"], 5)
    assert "broken" in found.complaint


@pytest.mark.parametrize(
    ("lines", "exit_code", "complaint"),
    [
        (["ok 1 - a", "1..1"], 0, ""),
        (["1..0 # SKIP not on this system"], 0, ""),
        (["ok 1 - a", "1..2"], 0, "ran 1 of 2 tests"),
        (["ok 1 - a"], 0, "ran 1 of None tests"),
        (["ok 1 - a", "1..1"], 29, "ended with exit code 29 after 1 tests"),
        ([], 124, "ended with exit code 124 after 0 tests"),
        (["not ok 1 - a", "1..1"], 1, "failed: a"),
    ],
)
def test_a_file_passes_only_if_it_ran_all_that_it_planned(
    lines: list[str], exit_code: int, complaint: str
) -> None:
    assert tally(*lines, exit_code=exit_code).complaint == complaint


def test_a_suite_that_ran_nothing_has_failed() -> None:
    skipped = tally("1..0 # SKIP not on this system")
    assert skipped.skipped_whole == "not on this system"
    assert TapTally("recovery", [], 1.0).complaints == ["recovery: not one test ran"]
    assert TapTally("recovery", [skipped], 1.0).complaints == ["recovery: not one test ran"]
    good = TapTally("recovery", [skipped, tally("ok 1 - a", "1..1")], 1.0)
    assert good.complaints == []
    assert good.line == "2 files (0 failed, 1 skipped as a whole), 1 tests: 1 passed, 0 failed, 0 skipped"

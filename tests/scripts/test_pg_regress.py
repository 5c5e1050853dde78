"""scripts/pg-regress.sh: PostgreSQL's own regression suite passes on an encrypted mount, every test of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.suites.pg_run import EXTRA_TESTS, Tally, was_skipped
from tests.suites.pg_source import PgSuite, prepare

REPOSITORY = Path(__file__).parents[2]
#: Seconds after which it hangs.
LIMIT = 1200


@pytest.mark.slow(seconds=150)
def test_regression_suite_of_postgres_passes_on_a_mount_with_no_test_left_out() -> None:
    done = subprocess.run(
        ["bash", REPOSITORY / "scripts" / "pg-regress.sh"],
        cwd="/var/tmp",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    said = done.stdout[-20_000:] + done.stderr[-20_000:]
    assert done.returncode == 0, said
    suite = prepare("15")
    wanted = names_in_schedule(suite)
    # the schedule ignores a failure of "random", which throws dice
    ran = re.findall(r"^(?:test|    ) +(\S+) +\.\.\. (?:ok|failed \(ignored\))", done.stdout, re.MULTILINE)
    # where the server's own suites are not to be had, those of another release fail on a plain directory, too
    known = re.search(r"^=== regress: fail on a plain directory, too, .*: (.*)", done.stdout, re.MULTILINE)
    ran += known[1].split() if known and not suite.is_exact else []
    assert set(ran) == set(wanted), suite.difference + said
    assert re.search(rf"^=== regress: .*\b{len(wanted)} tests (passed|failed)", done.stdout, re.MULTILINE), said
    assert known or re.search(r"^=== regress: .* passed", done.stdout, re.MULTILINE), said


def test_a_failed_test_is_not_taken_for_a_passed_one() -> None:
    old, tap = Tally("regress"), Tally("regress")
    for line in (
        "test test_setup                   ... ok          240 ms",
        "parallel group (3 tests):  name boolean random",
        "     boolean                      ... ok           53 ms",
        "     name                         ... FAILED       48 ms",
        "     random                       ... failed (ignored)       31 ms",
        " 2 of 4 tests failed. ",
    ):
        old.note(line)
    assert (old.passed, old.failed, old.ignored) == (["test_setup", "boolean"], ["name"], ["random"])
    assert old.line == "2 of 4 tests failed."
    for line in (
        "ok 1         - test_setup                                240 ms",
        "# parallel group (2 tests):  name boolean",
        "ok 2         + boolean                                    53 ms",
        "not ok 3     + name                                       48 ms",
        "# 1 of 3 tests failed.",
    ):
        tap.note(line)
    assert (tap.passed, tap.failed) == (["test_setup", "boolean"], ["name"])
    assert tap.missing(["boolean", "name", "char"]) == ["char"]
    assert tap.line == "1 of 3 tests failed."


def test_what_fails_with_other_words_than_on_a_plain_directory_is_not_laid_to_the_versions() -> None:
    def tally(**words: str) -> Tally:
        diffs = "".join(
            f"diff -U3 /suite/regress/expected/{name}.out /results/{name}.out\n--- a\t2026\n+++ b\t2026\n{said}\n"
            for name, said in words.items()
        )
        return Tally("regress", failed=list(words), diffs=diffs)

    plain = tally(copy="@@ 1\n-foo\n+bar", rules="@@ 1\n-1\n+2")
    mount = tally(copy="@@ 1\n-foo\n+bar", rules="@@ 1\n-1\n+3", vacuum="@@ 1\n+ERROR")
    assert mount.failed_alike(plain) == ["copy"]
    assert mount.failed_alike(Tally("regress")) == []


@pytest.mark.parametrize(
    ("exit_code", "passed", "failed", "skipped", "clean"),
    [
        (0, ["a"], [], [], True),
        (1, ["a"], [], [], False),
        (0, [], [], [], False),
        (0, ["a"], ["b"], [], False),
        (0, ["a"], [], ["a"], False),
    ],
)
def test_only_a_run_where_every_test_did_its_work_is_clean(
    exit_code: int, passed: list[str], failed: list[str], skipped: list[str], clean: bool
) -> None:
    tally = Tally("regress", passed=passed, failed=failed, skipped=skipped, exit_code=exit_code)
    assert tally.is_clean is clean


def test_a_test_that_left_at_once_counts_as_skipped(tmp_path: Path) -> None:
    skipped, done = tmp_path / "skipped.out", tmp_path / "done.out"
    skipped.write_text("SELECT getdatabaseencoding() <> 'UTF8' AS skip_test \\gset\n\\if :skip_test\n\\quit\n")
    done.write_text("\\if :skip_test\n\\quit\n\\endif\nSELECT 1;\n")
    assert [was_skipped(path) for path in (skipped, done)] == [True, False]


def names_in_schedule(suite: PgSuite) -> list[str]:
    """All tests of the suite, as its own file lists them."""
    text = suite.schedule("regress").read_text()
    return [*EXTRA_TESTS["regress"], *" ".join(re.findall(r"^test: *(.*)$", text, re.MULTILINE)).split()]

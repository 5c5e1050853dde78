"""A run of PostgreSQL's own suites against a server on a mount, or on a plain directory, and its tally."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.suites.pg_source import PgSuite
from tests.support.processes import end, processes_in
from tests.support.server import Server
from tests.support.workspace import Workspace

#: What pg_regress itself gives a server that it starts, where it bears on results. With no prepared transactions
#: their tests would be skipped.
SETTINGS = {"max_prepared_transactions": "20"}
#: Beside those of the schedules: a test that takes long on slow machines, and runs only when it is named.
EXTRA_TESTS = {"regress": ["numeric_big"], "isolation": []}
PROGRAMS = {"regress": "regress/pg_regress", "isolation": "isolation/pg_isolation_regress"}

# up to PostgreSQL 15, and the Test Anything Protocol of later ones
_RESULT = re.compile(
    r"(?:test|    ) +(?P<name>\S+) +\.\.\. (?P<said>ok|FAILED|failed \(ignored\)|failed)"
    r"|(?P<tap>ok|not ok) +\d+ +[-+] +(?P<tap_name>\S+)"
)
_TIMED_OUT = 124
# of diff(1), as pg_regress calls it; the next two lines have the time
_DIFFERENCE = re.compile(r"^diff -\S+(?: -\S+)* \S+ \S*/results/(\S+)\.out\n.*\n.*\n", re.MULTILINE)
_TALLY = re.compile(r"[# ]*(?:All \d+ tests passed|\d+ of \d+ tests (?:passed|failed)).*")


@dataclass
class Tally:
    """What became of each test of one suite."""

    suite: str
    seconds: float = 0.0
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    #: Failed, and the schedule says that this happens by chance: ``random`` counts dice.
    ignored: list[str] = field(default_factory=list)
    #: Those that found something missing, and left before they tested anything; pg_regress counts them as passed.
    skipped: list[str] = field(default_factory=list)
    #: pg_regress's last word.
    line: str = ""
    exit_code: int = -1
    diffs: str = ""

    def note(self, line: str) -> None:
        """Read one line of pg_regress's output."""
        if result := _RESULT.match(line):
            name = result["name"] or result["tap_name"]
            if "ok" in (result["said"], result["tap"]):
                self.passed.append(name)
            elif result["said"] == "failed (ignored)":
                self.ignored.append(name)
            else:
                self.failed.append(name)
        elif tally := _TALLY.match(line):
            self.line = tally[0].strip("# ")

    def missing(self, tests: list[str]) -> list[str]:
        """The tests that did not run."""
        return sorted(set(tests) - {*self.passed, *self.failed, *self.ignored})

    def differences(self) -> dict[str, str]:
        """What each failed test said that it should not, or did not say."""
        parts = _DIFFERENCE.split(self.diffs)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    def failed_alike(self, other: Tally) -> list[str]:
        """The failed tests that failed in the other run, too, with the same words."""
        here, there = self.differences(), other.differences()
        return [name for name in self.failed if name in here and here[name] == there.get(name)]

    @property
    def is_clean(self) -> bool:
        return self.exit_code == 0 and bool(self.passed) and not self.failed and not self.skipped


class SuiteRun:
    """A server with what the suites need, and the suites run against it."""

    def __init__(self, space: Workspace, suite: PgSuite, version: str, say: Callable[[str], None]) -> None:
        """:param say: gets every line of output as it comes"""
        self._space = space
        self._say = say
        self._version = version
        self._directory = space.directory("suites")
        self.suite = suite.copied_to(self._directory / "suite")

    def start(self, pgdata: Path, settings: Mapping[str, str]) -> Server:
        """Make a cluster in an empty directory of the server's user and start it."""
        server = self._space.server(self._version, pgdata)
        server.environment = self.suite.environment()
        server.initdb()
        server.configure({**SETTINGS, **settings})
        server.start()
        return server

    def run(self, name: str, server: Server, limit: float) -> Tally:
        """Run ``regress`` or ``isolation`` to its end.

        :param limit: seconds after which it hangs
        """
        output = self._directory / name
        output.mkdir(mode=0o755)
        self._space.account.own(output)
        tally = Tally(name)
        began = time.monotonic()
        expected = [f"--expecteddir={self.suite.directory / name}"] if int(self._version) >= 16 else []
        # timeout(1) ends the whole process group, also when this process waits for output that does not come
        process = server.popen(
            "/usr/bin/timeout",
            "--kill-after=10",
            str(limit),
            server.installation.bindir.parent / "lib" / "pgxs" / "src" / "test" / PROGRAMS[name],
            f"--inputdir={self.suite.directory / name}",
            f"--outputdir={output}",
            f"--bindir={server.installation.bindir}",
            f"--dlpath={self.suite.directory / 'lib'}",
            f"--schedule={self.suite.schedule(name)}",
            "--max-concurrent-tests=20",
            f"--host={server.socket_directory}",
            f"--port={server.port}",
            *expected,
            *EXTRA_TESTS[name],
        )
        assert process.stdout
        try:
            for line in process.stdout:
                tally.note(line)
                self._say(line.rstrip("\n"))
            tally.exit_code = process.wait()
        finally:
            end([pid for pid in processes_in(output) if pid != process.pid])
            process.wait()
        if tally.exit_code == _TIMED_OUT:
            self._say(f"stopped after {limit:.0f} s")
        tally.seconds = time.monotonic() - began
        for diffs in output.glob("*.diffs"):
            tally.diffs += diffs.read_text(errors="replace").replace(str(self._directory), "")
        tally.skipped = [path.stem for path in sorted(output.glob("results/*.out")) if was_skipped(path)]
        return tally


def was_skipped(result: Path) -> bool:
    """Tell from a test's output whether it has left at its beginning (``\\if :skip_test \\quit``)."""
    lines = result.read_text(errors="replace").rstrip().splitlines()
    return lines[-1:] == ["\\quit"]

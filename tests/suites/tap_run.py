"""A run of one of PostgreSQL's TAP suites, with all its clusters on one directory, and its tally."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.suites.tap_build import TapBuild
from tests.support.processes import end, processes_in
from tests.support.workspace import Workspace

#: Seconds after which one file of a suite hangs.
FILE_LIMIT = 1800
#: Seconds that the suites themselves wait for what should come; 180 is theirs, and too few for a busy machine.
PATIENCE = 600

# Only the file's own lines: those of subtests are indented.
_POINT = re.compile(
    r"(?P<not>not )?ok\b(?: \d+)?(?: -)?(?P<name>[^#]*)(?:#\s*(?P<directive>SKIP|TODO)\b.*)?", re.I
)
_PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*SKIP\S*\s*(.*))?", re.I)


@dataclass
class FileTally:
    """What became of one file of tests."""

    name: str
    exit_code: int = -1
    seconds: float = 0.0
    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    #: How many tests the file says that it has; None if it ended before it said so.
    planned: int | None = None
    #: Why the file skipped itself as a whole, or nothing.
    skipped_whole: str = ""

    def note(self, line: str) -> None:
        """Read one line of the file's output, in the Test Anything Protocol."""
        if plan := _PLAN.match(line):
            self.planned = int(plan[1])
            self.skipped_whole = plan[2] or ("no reason given" if self.planned == 0 else "")
        elif point := _POINT.match(line):
            directive = (point["directive"] or "").upper()
            if directive == "SKIP":
                self.skipped += 1
            elif point["not"] and directive != "TODO":
                self.failed.append(point["name"].strip())
            else:
                self.passed += 1

    @property
    def ran(self) -> int:
        return self.passed + self.skipped + len(self.failed)

    @property
    def complaint(self) -> str:
        """What is wrong, or nothing."""
        if self.failed:
            return f"failed: {'; '.join(self.failed)}"
        if self.exit_code != 0:
            return f"ended with exit code {self.exit_code} after {self.ran} tests"
        if self.ran != self.planned:
            return f"ran {self.ran} of {self.planned} tests"
        return ""


@dataclass
class TapTally:
    """What became of a suite."""

    suite: str
    files: list[FileTally]
    seconds: float

    @property
    def complaints(self) -> list[str]:
        """What is wrong; a suite that ran nothing is."""
        found = [f"{self.suite}/{file.name}: {file.complaint}" for file in self.files if file.complaint]
        if not sum(file.passed for file in self.files):
            found.append(f"{self.suite}: not one test ran")
        return found

    @property
    def line(self) -> str:
        """The figures of the suite."""
        whole = sum(bool(file.skipped_whole) for file in self.files)
        bad = sum(bool(file.complaint) for file in self.files)
        passed, failed = sum(file.passed for file in self.files), sum(len(file.failed) for file in self.files)
        skipped = sum(file.skipped for file in self.files)
        return (
            f"{len(self.files)} files ({bad} failed, {whole} skipped as a whole), "
            f"{passed + failed + skipped} tests: {passed} passed, {failed} failed, {skipped} skipped"
        )


class TapRun:
    """Suites of one build, each run on a directory that is given."""

    def __init__(
        self, space: Workspace, build: TapBuild, jobs: int, only: Sequence[str], say: Callable[[str], None]
    ) -> None:
        """
        :param jobs: how many files run at a time
        :param only: the files that run, by name; without any, every file
        :param say: gets a line for each file as it ends
        """
        self._space = space
        self._say = say
        self._jobs = jobs
        self._only = only
        self.build = build.copied_to(space.directory("tap") / "build")
        self._ports = space.directory("ports")
        space.account.own(self._ports)

    def run(self, suite: str, place: Path) -> TapTally:
        """Run a suite to its end.

        :param place: where it puts its clusters and logs, a directory of the server's user with the name
            ``tmp_check``
        """
        began = time.monotonic()
        output = self._space.directory("out")
        chosen = [file for file in self.build.files(suite) if not self._only or file.name in self._only]
        with ThreadPoolExecutor(self._jobs) as pool:
            files = list(pool.map(lambda file: self._run_file(suite, file, place, output), chosen))
        return TapTally(suite, files, time.monotonic() - began)

    def _run_file(self, suite: str, file: Path, place: Path, output: Path) -> FileTally:
        tally = FileTally(file.name)
        began = time.monotonic()
        account = self._space.account
        sockets = self._space.directory("s")  # and other short-lived things
        account.own(sockets)
        environment = {
            **account.environment(),
            **self.build.environment(),
            # up to PostgreSQL 15, and later
            "TESTDIR": str(place.parent),
            "TESTDATADIR": str(place),
            "TESTLOGDIR": str(place / "log"),
            "TMPDIR": str(sockets),
            "PG_TEST_PORT_DIR": str(self._ports),
            "PG_TEST_TIMEOUT_DEFAULT": str(PATIENCE),
            "PGPORT": "65432",
        }
        perl: list[str | Path] = [
            "perl",
            "-I",
            self.build.directory / "source" / "src/test/perl",
            "-I",
            self.build.suite(suite),
        ]
        said = output / f"{file.stem}.tap"
        with said.open("wb") as text:
            process = subprocess.Popen(
                account.command("timeout", "--kill-after=10", str(FILE_LIMIT), *perl, f"t/{file.name}"),
                env=environment,
                cwd=self.build.suite(suite),
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=subprocess.STDOUT,
            )
            try:
                tally.exit_code = process.wait()
            finally:
                # a test that failed leaves its servers
                end([pid for pid in processes_in(place) if f"_{file.stem}_" in _directory_of(pid)])
        for line in said.read_text(errors="replace").splitlines():
            tally.note(line)
        tally.seconds = time.monotonic() - began
        what = tally.complaint or (f"skipped: {tally.skipped_whole}" if tally.skipped_whole else "")
        figures = f"{tally.passed} passed, {tally.skipped} skipped, {tally.seconds:.0f} s"
        self._say(f"{'not ok' if tally.complaint else 'ok'} - {suite}/{file.name}: {what or figures}")
        if tally.complaint:
            self._say("\n".join(f"    {line}" for line in said.read_text(errors="replace").splitlines()[-30:]))
        return tally


def _directory_of(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""

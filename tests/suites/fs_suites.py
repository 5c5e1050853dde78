"""The command behind scripts/fs-suites.sh: the same exercises on a mount and on a plain directory, compared."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tabulate import tabulate

from tests.suites import fio, packaged, stress_ng
from tests.suites.differences import reason
from tests.suites.exercise import Exercise, Outcome
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CACHE = Path(__file__).parents[2] / ".cache" / "fs-suites"
SUITES = ("stress-ng", "fio", "benchmark", "python")


class Comparison:
    """Run exercises on a plain directory and on a mount, one after the other."""

    def __init__(self, plain: Path, volume: Volume) -> None:
        self._plain = plain
        self._volume = volume
        #: What was said, where the outcomes differ for no known reason.
        self.unknown: list[str] = []

    def row(self, exercise: Exercise) -> tuple[str, ...]:
        """Run one exercise in both; return its row of the table."""
        plain, said_plain = run_in(exercise, self._plain, None)
        mount, said_mount = run_in(exercise, self._volume.mountpoint, self._volume.mountpoint)
        difference = ""
        if not plain.same_as(mount):
            known = reason(exercise, plain, mount)
            difference = known or f"UNKNOWN: {_only(plain, mount)[:200]}"
            if known is None:
                title = f"=== {exercise.suite}, {exercise.name}: {_only(plain, mount)}"
                self.unknown.append(f"{title}\n--- plain\n{said_plain}--- mount\n{said_mount}")
        times = (f"{plain.seconds:.1f}", f"{mount.seconds:.1f}")
        return (exercise.suite, exercise.name, plain.word, mount.word, *times, difference)


def run_in(exercise: Exercise, parent: Path, mountpoint: Path | None) -> tuple[Outcome, str]:
    """Run an exercise in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix=f"{exercise.suite}-", dir=parent))
    directory.chmod(0o755)
    try:
        return exercise.run(directory, mountpoint)
    finally:
        if not exercise.stays:
            shutil.rmtree(directory)


def soundness(volume: Volume) -> list[str]:
    """Unmounts, and returns what is wrong: the daemon is gone or complained, or the volume is damaged."""
    wrong = [] if volume.daemons else ["the daemon is gone"]
    if volume.daemons:
        volume.umount()
    wrong += [f"the daemon's log has: {line}" for line in volume.complaints()]
    verified = volume.tdefs("verify", volume.backing, *volume.unlock, check=False)
    if verified.returncode != 0:
        wrong.append(f"tdefs verify: exit code {verified.returncode}\n{verified.stdout}{verified.stderr}")
    return wrong


def main(words: list[str]) -> int:
    """Run what the arguments ask for; return the exit code."""
    options = _parse(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    chosen = [*stress_ng.exercises(options.seconds), *fio.exercises(), *packaged.exercises()]
    chosen = [
        one for one in chosen if one.suite in options.suite and (not options.only or one.name in options.only)
    ]
    space = Workspace()
    try:
        volume = space.volume()
        volume.init()
        volume.mount()
        # as long a path as that of the mount: a socket's name has its limit
        plain = space.directory("plain_") / volume.mountpoint.relative_to(volume.root.parent)
        plain.mkdir(parents=True)
        assert len(str(plain)) == len(str(volume.mountpoint))
        comparison = Comparison(plain, volume)
        rows = []
        for exercise in chosen:
            rows.append(comparison.row(exercise))
            print("  ".join(rows[-1]), flush=True)
        wrong = soundness(volume)
    finally:
        space.close()
    _report(rows, comparison.unknown, wrong)
    return 1 if comparison.unknown or wrong else 0


def _report(rows: list[tuple[str, ...]], unknown: list[str], wrong: list[str]) -> None:
    headers = ("suite", "exercise", "ext4", "tdefs", "s", "s", "difference")
    table = tabulate(rows, headers=headers, disable_numparse=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "table.txt").write_text(table + "\n")
    (CACHE / "unknown.txt").write_text("\n".join(unknown))
    print(f"\n{table}\n")
    known = sum(bool(row[-1]) for row in rows) - len(unknown)
    print(
        f"{len(rows)} exercises: {known} known differences, {len(unknown)} unknown (see {CACHE / 'unknown.txt'})"
    )
    for line in wrong:
        print(f"[failed] {line}", file=sys.stderr)


def _only(plain: Outcome, mount: Outcome) -> str:
    """What one of the two has and the other has not."""
    here = Outcome(plain.word, plain.notes - mount.notes).text()
    return f"{here} | {Outcome(mount.word, mount.notes - plain.notes).text()}"


def _leave(number: int, frame: FrameType | None) -> None:
    # SystemExit passes through every finally
    sys.exit(128 + number)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fs-suites.sh")
    parser.add_argument("--suite", choices=SUITES, action="append", help="only this suite; may be repeated")
    parser.add_argument("--only", metavar="EXERCISE", action="append", help="only this exercise; may be repeated")
    parser.add_argument("--seconds", type=int, default=3, help="for each stressor (default: %(default)s)")
    options = parser.parse_args(words)
    options.suite = options.suite or SUITES
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

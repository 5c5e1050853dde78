"""scripts/pg-regress.sh --tap: PostgreSQL's TAP suites, with all that they make on an encrypted mount."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.suites.archive import NotAvailable
from tests.suites.tap_build import CACHE, prepare
from tests.suites.tap_run import TapRun, TapTally
from tests.support.processes import end, processes_in
from tests.support.volume import Volume
from tests.support.workspace import Workspace

PASSED, FAILED, COULD_NOT_RUN = 0, 1, 2


def main(version: str, suites: Sequence[str], *, plain: bool, jobs: int, only: Sequence[str] = ()) -> int:
    """Run the suites, each on a volume of its own, and return the exit code.

    :param jobs: how many files run at a time
    :param only: the files that run, by name; without any, every file
    """
    try:
        build = prepare(version)
    except NotAvailable as error:
        print(f"[failed] PostgreSQL {version} cannot be built: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    if unknown := sorted(set(only) - {file.name for suite in suites for file in build.files(suite)}):
        print(f"[failed] no such file in {', '.join(suites)}: {', '.join(unknown)}", file=sys.stderr)
        return COULD_NOT_RUN
    print(f"[ok] PostgreSQL {build.version}, built from the distribution's source package", flush=True)
    space = Workspace()
    lines, complaints = [], []
    try:
        run = TapRun(space, build, jobs, only, lambda line: print(line, flush=True))
        for suite in suites:
            tally, wrong = _run_suite(space, run, suite, plain=plain)
            complaints += [*tally.complaints, *(f"{suite}: {what}" for what in wrong)]
            lines.append(f"=== {suite}: {tally.line} ({tally.seconds:.0f} s)")
            print(lines[-1], flush=True)
    finally:
        space.close()
    print(f"\nTAP suites of PostgreSQL {build.version} on {'a plain directory' if plain else 'encrypted mounts'}")
    print("\n".join(lines), flush=True)
    for complaint in complaints:
        print(f"[failed] {complaint}", file=sys.stderr)
    return FAILED if complaints else PASSED


def _run_suite(space: Workspace, run: TapRun, suite: str, *, plain: bool) -> tuple[TapTally, list[str]]:
    """Run one suite; return its tally, and what is wrong with the volume."""
    if plain:
        place = space.directory(suite) / "tmp_check"
        place.mkdir()
        space.account.own(place)
        tally = run.run(suite, place)
        _keep_logs(run, tally, place)
        shutil.rmtree(place)
        return tally, []
    volume = space.volume(suite)
    volume.mountpoint = volume.root / "tmp_check"
    volume.mountpoint.mkdir()
    volume.init()
    volume.mount(owner=space.account)
    tally = run.run(suite, volume.mountpoint)
    _keep_logs(run, tally, volume.mountpoint)
    return tally, _soundness(space, volume)


def _keep_logs(run: TapRun, tally: TapTally, place: Path) -> None:
    """Copies the logs of a suite that failed to where they can be read afterwards."""
    kept = CACHE / f"log-{run.build.version}-{tally.suite}"
    shutil.rmtree(kept, ignore_errors=True)
    if tally.complaints and (place / "log").is_dir():
        shutil.copytree(place / "log", kept)
        print(f"the logs are in {kept}", flush=True)


def _soundness(space: Workspace, volume: Volume) -> list[str]:
    """Unmounts, and returns what is wrong. What a suite leaves may be damaged on purpose: it is removed before."""
    daemons = volume.daemons
    wrong = [] if daemons else ["the daemon is gone"]
    if daemons:
        end([pid for pid in processes_in(volume.mountpoint) if pid not in daemons])
        subprocess.run(["rm", "-rf", "--", *volume.mountpoint.iterdir()], check=True)
        volume.umount()
    wrong += [f"the daemon's log has: {line}" for line in volume.complaints()]
    verified = volume.tdefs("verify", volume.backing, *volume.unlock, check=False)
    if verified.returncode != 0:
        wrong.append(f"tdefs verify: exit code {verified.returncode}\n{verified.stdout}{verified.stderr}")
    space.volumes.remove(volume)
    shutil.rmtree(volume.root)
    return wrong

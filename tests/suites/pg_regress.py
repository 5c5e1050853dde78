"""The command behind scripts/pg-regress.sh."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from types import FrameType

from tests.suites import pg_tap
from tests.suites.archive import NotAvailable
from tests.suites.pg_run import SuiteRun, Tally
from tests.suites.pg_source import CACHE, PgSuite, prepare
from tests.suites.tap_build import SUITES
from tests.support.volume import Volume
from tests.support.workspace import Workspace

PASSED, FAILED, COULD_NOT_RUN = pg_tap.PASSED, pg_tap.FAILED, pg_tap.COULD_NOT_RUN
RECOMMENDED = {"wal_sync_method": "open_datasync", "wal_buffers": "64MB", "wal_writer_delay": "10ms"}
#: Seconds after which a suite hangs.
LIMIT = 3600


def main(words: list[str]) -> int:
    """Run what the arguments ask for; return the exit code."""
    options = _parse(words)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    if options.tap is not None:
        return pg_tap.main(
            options.version, options.tap or list(SUITES), plain=options.plain, jobs=options.jobs, only=options.only
        )
    try:
        suite = prepare(options.version)
    except NotAvailable as error:
        print(f"[failed] the suites of PostgreSQL {options.version} are not available: {error}", file=sys.stderr)
        return COULD_NOT_RUN
    _name(suite)
    space = Workspace()
    try:
        tallies, complaints = _run(space, suite, options, plain=options.plain)
        others: list[Tally] = []
        if not suite.is_exact and not options.plain and not all(tally.is_clean for tally in tallies):
            print("[..] the same on a plain directory: does it fail there, too?", flush=True)
            others, _ = _run(space, suite, options, plain=True)
    finally:
        space.close()
    for number, tally in enumerate(tallies):
        complaints.append(_judge(tally, suite, others[number] if others else None))
    found = [complaint for complaint in complaints if complaint]
    for complaint in found:
        print(f"[failed] {complaint}", file=sys.stderr)
    if found and suite.difference:
        print(f"NOTE: {suite.difference}", file=sys.stderr)
    return FAILED if found else PASSED


def _run(
    space: Workspace, suite: PgSuite, options: argparse.Namespace, *, plain: bool
) -> tuple[list[Tally], list[str]]:
    """Run the suites on one directory; return their tallies, and what is wrong with cluster and volume."""
    settings = dict(RECOMMENDED) if options.recommended else {}
    settings |= dict(options.set)
    volume: Volume | None = None
    if plain:
        pgdata = space.data_directory("plain")
    else:
        volume = space.volume()
        volume.init()
        volume.mount(owner=space.account)
        pgdata = volume.mountpoint
    place = "a plain directory" if volume is None else "an encrypted mount"
    print(f"[ok] PGDATA is {place}: {pgdata}", flush=True)
    run = SuiteRun(space, suite, options.version, lambda line: print(line, flush=True))
    server = run.start(pgdata, settings)
    tallies = [run.run(name, server, LIMIT) for name in options.suites]
    server.stop()
    complaints = []
    if checksums := server.run("pg_checksums", "--check", "-D", pgdata, check=False).stderr:
        complaints.append(f"pg_checksums: {checksums}")
    if volume is not None:
        volume.umount()
        complaints += [f"the daemon's log has: {line}" for line in volume.complaints()]
        verified = volume.tdefs("verify", volume.backing, *volume.unlock, check=False)
        if verified.returncode != 0:
            complaints.append(f"tdefs verify: exit code {verified.returncode}\n{verified.stdout}{verified.stderr}")
    return tallies, complaints


def _judge(tally: Tally, suite: PgSuite, plain: Tally | None) -> str:
    """Print a suite's tally and the differences; return what is wrong, or nothing.

    :param plain: a run of suites that are not the server's on a plain directory. What fails there in the same way
        differs between the two versions, and says nothing about tdefs.
    """
    if tally.diffs:
        CACHE.joinpath(f"{tally.suite}.diffs").write_text(tally.diffs)
        print(tally.diffs)
    print(f"=== {tally.suite}: {tally.line} ({tally.seconds:.0f} s)", flush=True)
    if missing := tally.missing(suite.tests(tally.suite)):
        return f"{tally.suite}: did not run: {' '.join(missing)}"
    if tally.skipped:
        return f"{tally.suite}: skipped themselves: {' '.join(tally.skipped)}"
    alike = tally.failed_alike(plain) if plain else []
    if alike:
        print(f"=== {tally.suite}: fail on a plain directory, too, with the same words: {' '.join(alike)}")
        print(f"NOTICE: {suite.difference}", flush=True)
    if tally.passed and tally.failed and set(tally.failed) == set(alike):
        return ""
    if not tally.is_clean:
        failed = [name for name in tally.failed if name not in alike]
        return f"{tally.suite}: {tally.line}: {' '.join(failed)} (exit code {tally.exit_code})"
    return ""


def _name(suite: PgSuite) -> None:
    if suite.is_exact:
        print(f"[ok] the suites of {suite.version}, as the server")
        return
    print(
        "*" * 80,
        f"NOTICE: the server is {suite.server_version}; the nearest source that is to be had is {suite.version}.",
        "Tests of what differs between the two may fail.",
        "*" * 80,
        sep="\n",
        flush=True,
    )


def _leave(number: int, frame: FrameType | None) -> None:
    # SystemExit passes through every finally
    sys.exit(128 + number)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\s*[\w.]+\s*", name):
        raise argparse.ArgumentTypeError(f'"{text}" is not NAME=VALUE')
    return name.strip(), value.strip()


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/pg-regress.sh",
        description="Runs PostgreSQL's own suites, from the source package nearest to the installed server, "
        "against a server on an encrypted mount: the regression suite, unless options say otherwise. Exit code "
        "0: every test passed, and the volume is sound; 1: not so; 2: it could not be run.",
    )
    what = parser.add_mutually_exclusive_group()
    for option, suites, text in (
        ("--isolation", ["isolation"], "the isolation suite instead"),
        ("--all", ["regress", "isolation"], "both"),
    ):
        what.add_argument(option, dest="suites", action="store_const", const=suites, help=text)
    what.add_argument(
        "--tap",
        metavar="SUITE",
        nargs="*",
        choices=SUITES,
        help=f"the TAP suites of a server built from source, or only these: {', '.join(SUITES)}",
    )
    parser.add_argument(
        "--only",
        metavar="FILE",
        action="append",
        default=[],
        help="only this file of the TAP suites, such as 001_rep_changes.pl; may be repeated",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="files of a TAP suite at a time (default: %(default)s)"
    )
    parser.add_argument("--plain", action="store_true", help="on a plain directory instead, to compare")
    parser.add_argument("--recommended", action="store_true", help="with the settings that the README recommends")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", type=_setting, action="append", default=[], help="a setting of the server"
    )
    parser.add_argument(
        "--version", default="15", help="the server's major version (default: %(default)s); with --tap also 18"
    )
    parser.set_defaults(suites=["regress"])
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What else the distribution packages that exercises file systems: benchmarks, and Python's own tests of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.suites.exercise import Exercise

#: Those of Python's tests that are about files, locks on them, and libraries that keep data in them.
PYTHON_TESTS = (
    "test_os test_posix test_shutil test_mmap test_fcntl test_fileio test_io test_largefile "
    "test_glob test_pathlib test_tempfile test_genericpath test_posixpath test_stat test_file "
    "test_bufio test_filecmp test_zipfile test_tarfile test_mailbox test_dbm test_dbm_ndbm "
    "test_dbm_dumb test_shelve test_fileinput test_unicode_file test_unicode_file_functions "
    "test_file_eintr "
)
_RESULTS = "python-tests.xml"
_POSTMARK = """\
set location {directory}
set number 2000
set transactions 3000
set size 500 40000
run
quit
"""


def exercises() -> list[Exercise]:
    """All of them, the longest last."""
    return [
        _benchmark("dbench", lambda _: [["dbench", "--directory=.", "--timelimit=10", "4"]]),
        _benchmark("dbench, each write synced", lambda _: [["dbench", "-D", ".", "-t", "10", "--sync", "2"]]),
        _benchmark("fs_mark", lambda _: [["fs_mark", "-d", ".", "-n", "1000", "-s", "20000", "-t", "2"]]),
        _benchmark("fs_mark, many directories", _fs_mark_directories),
        _benchmark(
            "bonnie++", lambda _: [["bonnie++", "-d", ".", "-s", "128", "-r", "64", "-n", "2", "-u", "root"]]
        ),
        _benchmark("postmark", _postmark),
        Exercise("python", "its own tests", _python, _judge_python, limit=1800),
    ]


def _benchmark(name: str, commands: Callable[[Path], Sequence[Sequence[str]]]) -> Exercise:
    return Exercise("benchmark", name, commands, _judge, limit=300)


def _fs_mark_directories(directory: Path) -> list[list[str]]:
    return [["fs_mark", "-d", ".", "-n", "500", "-s", "9000", "-D", "50", "-N", "10", "-S", "2"]]


def _postmark(directory: Path) -> list[list[str]]:
    script = directory / "postmark.conf"
    script.write_text(_POSTMARK.format(directory=directory))
    return [["postmark", str(script)]]


def _python(directory: Path) -> Sequence[Sequence[str]]:
    command = ["/usr/bin/python3", "-m", "test", f"--tempdir={directory}", f"--junit-xml={directory / _RESULTS}"]
    return [[*command, "-u", "largefile", *PYTHON_TESTS.split()]]


def _judge(code: int, said: str, directory: Path) -> tuple[str, frozenset[str]]:
    if code == 0:
        return "ok", frozenset()
    return "failed", frozenset({said.strip().splitlines()[-2][:200]})


def _judge_python(code: int, said: str, directory: Path) -> tuple[str, frozenset[str]]:
    """Each test that did not run or did not pass is a note."""
    notes = set()
    # written by a program that was just run, not by a stranger
    for case in ElementTree.parse(directory / _RESULTS).iter("testcase"):  # noqa: S314
        for result in ("skipped", "failure", "error"):
            if case.find(result) is not None:
                notes.add(f"{result}: {case.get('name')}")
    return "ok" if code == 0 else "failed", frozenset(notes)

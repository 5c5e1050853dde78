"""How ``tdefs verify`` reads: several files at a time, in one order, with progress, until it is interrupted.

Covers tdefs/offline/in_order.py, tdefs/offline/file_checking.py and tdefs/cli/common/progress.py.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tdefs.cli import verify
from tdefs.cli.common import progress
from tdefs.errors import Exit
from tdefs.offline.in_order import in_order
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume, good_pages
from tests.support.processes import wait_until
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS

UNLOCK = ("--key-command", KEY_COMMAND)
#: A hole of that length takes some seconds to read.
LONG = 32 << 30


def nothing() -> None:
    pass


def test_results_come_in_order_whichever_thread_is_first() -> None:
    def work(number: int) -> int:
        time.sleep(random.random() / 500)
        return number * 2

    found = list(in_order(work, range(300), 4, tick=nothing, stop=threading.Event()))
    assert found == list(range(0, 600, 2))


def test_error_comes_where_it_belongs_and_ends_the_work() -> None:
    stop = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 30:
            raise ValueError("30")
        return number

    threads = threading.active_count()
    results = in_order(work, range(10_000), 4, tick=nothing, stop=stop)
    assert [next(results) for _ in range(30)] == list(range(30))
    with pytest.raises(ValueError, match="30"):
        next(results)
    assert stop.is_set()
    assert max(begun) < 300
    assert threading.active_count() == threads


def test_only_so_much_is_done_ahead_of_a_slow_taker() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return number

    results = in_order(work, range(10_000), 4, tick=nothing, stop=threading.Event())
    assert next(results) == 0
    time.sleep(0.2)
    assert len(done) <= 70
    results.close()


@pytest.mark.parametrize("allowed", [0, 1])
def test_work_is_done_where_threads_cannot_be_had(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert list(in_order(str, range(100), 4, tick=nothing, stop=threading.Event())) == list(map(str, range(100)))


def test_several_files_are_read_at_a_time(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that answers only once two files are asked for."""
    small.cluster()
    asked = threading.Barrier(2)
    inodes = []
    for number in range(4):
        small.encrypt(f"base/5/{16384 + number}", good_pages(130))
        inodes.append(small.path(f"base/5/{16384 + number}").stat().st_ino)
    pread = os.pread

    def waiting(fd: int, size: int, offset: int) -> bytes:
        if offset == 8192 and os.fstat(fd).st_ino in inodes:
            asked.wait(30)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", waiting)
    assert command.run(verify, small.volume.backing, *UNLOCK)[0] == Exit.OK


def test_report_is_the_same_each_time(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, unreadable and sound files side by side, and threads of any speed."""
    small.cluster()
    for number in range(60):
        path = f"base/5/{16384 + number}"
        small.encrypt(path, good_pages(1 + number % 5))
        if number % 7 == 0:
            small.damage(path, 100 if number % 2 else 8192 + 77)
    unreadable = {small.path(f"base/5/{16384 + number}").stat().st_ino for number in (5, 25, 45)}
    pread = os.pread

    def pausing(fd: int, size: int, offset: int) -> bytes:
        time.sleep(random.random() / 500)
        if offset >= 8192 and os.fstat(fd).st_ino in unreadable:
            raise OSError(5, "Input/output error")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", pausing)
    reports = [command.run(verify, small.volume.backing, *UNLOCK) for _ in range(3)]
    assert reports[1:] == reports[:1] * 2
    found = command.json(verify, small.volume.backing, *UNLOCK)["findings"]
    paths = [one["path"] for one in found]
    assert paths == sorted(paths)
    assert len(paths) == 9 + 3
    assert sum("cannot be read" in one["error"] for one in found) == 3


def test_progress_is_told_by_lines_where_there_is_no_terminal(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.cluster()
    small.encrypt("base/5/16384", good_pages(500))
    command.run(verify, small.volume.backing, *UNLOCK)
    assert command.errors == ""  # done before the first line was due
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    output = command.run(verify, small.volume.backing, *UNLOCK, "--json")[1]
    json.loads(output)
    lines = command.errors.splitlines()
    size = r"[0-9.]+[kMGT]?B"
    form = rf"tdefs: (\d+) of 8 files and {size} of {size} are read, {size}/s(?:, about \d+ s left)?"
    matches = [re.fullmatch(form, line) for line in lines]
    assert lines
    assert all(matches), lines
    counts = [int(match[1]) for match in matches if match]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    command.run(verify, small.volume.backing, *UNLOCK, "--quiet")
    assert command.errors == ""


def test_progress_is_a_bar_on_a_terminal(small: SmallVolume) -> None:
    small.cluster()
    wide = 'stty rows 24 columns 100; exec "$@"'  # a new terminal has no size
    with Terminal(["sh", "-c", wide, "sh", TDEFS, "verify", small.volume.backing, *UNLOCK]) as terminal:
        terminal.expect(r"0%\|")
        terminal.expect(r"findings +0")
        assert terminal.end()[0] == Exit.OK, terminal.shown


def test_interrupted_verify_ends_at_once_and_says_so(small: SmallVolume, tmp_path: Path) -> None:
    small.cluster()
    for number in range(4):
        small.encrypt(f"base/5/{16384 + number}", b"", length=LONG)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [TDEFS, "verify", small.volume.backing, *UNLOCK],
            stdout=said,
            stderr=said,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            tasks = Path(f"/proc/{process.pid}/task")
            assert wait_until(lambda: len(list(tasks.iterdir())) > 4, 30)
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 130
        finally:
            process.kill()
            process.wait()
    assert (tmp_path / "said").read_text() == "tdefs: interrupted\n"

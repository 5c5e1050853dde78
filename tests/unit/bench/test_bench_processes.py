"""Processor time and memory of processes, as the benchmark reads them from /proc."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.processes import processor_time, resident_mb

_BUSY = "import time\nwhile time.process_time() < 0.3: pass\n"


def test_processor_time_counts_children_that_have_ended() -> None:
    before = processor_time([os.getpid()])
    subprocess.run([sys.executable, "-c", _BUSY], check=True)
    assert (processor_time([os.getpid()]) - before).total >= 0.25


def test_processor_time_counts_children_that_run() -> None:
    before = processor_time([os.getpid()])
    script = _BUSY + "print('busy enough', flush=True)\ninput()\n"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        child.stdout.readline()
        assert (processor_time([os.getpid()]) - before).total >= 0.25
        child.communicate("\n")


def test_no_process_uses_nothing() -> None:
    assert processor_time([]).total == 0
    assert resident_mb([]) == 0


def test_resident_memory_is_in_megabytes() -> None:
    assert 5 < resident_mb([os.getpid()]) < 5000

"""Random reads of pages by several processes, as PostgreSQL's backends read, without fio."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

PAGE = 8192
_SEED = 1
#: Seconds after which a reader hangs.
_LIMIT = 120


def shuffled_pages(size: int) -> list[int]:
    """Return the numbers of every second page of a file in a random order, the same for every system.       (pure)

    Like this each page is one request: the kernel reads ahead where the page before is in its cache, and joins the
    writes of neighbours.

    :param size: of the file, in bytes
    """
    pages = list(range(0, size // PAGE, 2))
    random.Random(_SEED).shuffle(pages)  # noqa: S311 - an order, no secret
    return pages


def shares(pages: list[int], jobs: int) -> list[list[int]]:
    """Return the pages that each job reads: no page is read by two jobs.       (pure)"""
    return [pages[job::jobs] for job in range(jobs)]


def turns(pages: list[int], jobs: int) -> list[list[int]]:
    """Return all pages for each job, each beginning at another one.       (pure)

    With a share only, what a job reads would fit the processor's cache as soon as there are many jobs.
    """
    starts = [len(pages) * job // jobs for job in range(jobs)]
    return [pages[start:] + pages[:start] for start in starts]


@dataclass(frozen=True, slots=True)
class Reads:
    """What one job has read."""

    count: int
    began: float
    ended: float
    """By the clock that all processes have in common, in seconds."""


def rate(jobs: Sequence[Reads]) -> float:
    """Return the reads per second of all jobs, from the first one's beginning to the last one's end.       (pure)

    With more jobs than processors, some begin when others have ended: the sum of their rates would be too high.
    """
    return sum(job.count for job in jobs) / (max(job.ended for job in jobs) - min(job.began for job in jobs))


def read_pages(path: Path, pages: Iterable[int], seconds: float) -> Reads:
    """Read pages one by one until the time is up, or all are read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        began = now = time.perf_counter()
        until, count = began + seconds, 0
        for page in pages:
            os.pread(descriptor, PAGE, page * PAGE)
            count += 1
            now = time.perf_counter()
            if now >= until:
                break
        return Reads(count, began, now)
    finally:
        os.close(descriptor)


def reads_per_second(path: Path, jobs: int, seconds: float, *, again: bool = False) -> float:
    """Return how many pages several processes read in a second.

    :param again: each job reads all pages, and begins again. Without it each page is read once, and a file that
        was cold stays cold for every read.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(jobs)
    pages = shuffled_pages(path.stat().st_size)
    parts = turns(pages, jobs) if again else shares(pages, jobs)
    pipes = [context.Pipe(duplex=False) for _ in range(jobs)]
    processes = [
        context.Process(
            target=_job, args=(path, cycle(part) if again else part, seconds, barrier, sender), daemon=True
        )
        for part, (_, sender) in zip(parts, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # so that the end of a reader that failed is seen
    try:
        done = [_result(receiver) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for receiver, _ in pipes:
            receiver.close()
    return rate(done)


def _job(path: Path, pages: Iterable[int], seconds: float, barrier: Barrier, sender: Connection) -> None:
    barrier.wait(_LIMIT)
    sender.send(read_pages(path, pages, seconds))


def _result(receiver: Connection) -> Reads:
    if not receiver.poll(_LIMIT):
        raise TimeoutError(f"a reader has said nothing for {_LIMIT} s")
    reads: Reads = receiver.recv()
    return reads

"""Locks hold between processes, as postmaster.pid, pg_ctl and backup tools expect."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from pathlib import Path

import pytest

from tests.fs.twins import Twins
from tests.support.children import helper, in_child


def held(directory: Path) -> int:
    return os.open(directory / "file", os.O_RDWR | os.O_CREAT, 0o600)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_keeps_another_process_out_until_its_holder_ends(twins: Twins, kind: str) -> None:
    lock = fcntl.flock if kind == "flock" else fcntl.lockf

    def take(directory: Path) -> int:
        fd = held(directory)
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def use(directory: Path) -> object:
        with helper(lambda: take(directory)):
            seen = [in_child(partial(refused, directory, how)) for how in (fcntl.LOCK_EX, fcntl.LOCK_SH)]
        return [*seen, in_child(lambda: refused(directory, fcntl.LOCK_EX))]

    def refused(directory: Path, how: int) -> bool:
        try:
            lock(held(directory), how | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    assert twins.same(use) == [True, True, False]


def test_ranges_are_locked_one_by_one(twins: Twins) -> None:
    def use(directory: Path) -> object:
        seen = []

        def take() -> int:
            fd = held(directory)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 200)
            return fd

        with helper(take):
            for how, length, start in (
                (fcntl.LOCK_EX, 100, 0),
                (fcntl.LOCK_EX, 1, 109),
                (fcntl.LOCK_EX, 90, 110),
                (fcntl.LOCK_SH, 10, 200),
                (fcntl.LOCK_EX, 10, 200),
                (fcntl.LOCK_EX, 0, 0),
            ):

                def attempt(how: int = how, length: int = length, start: int = start) -> bool:
                    try:
                        fcntl.lockf(held(directory), how | fcntl.LOCK_NB, length, start)
                    except BlockingIOError:
                        return False
                    return True

                seen.append(in_child(attempt))
        return seen

    assert twins.same(use) == [True, False, True, True, False, False]


def test_a_lock_survives_a_rename_of_its_file(twins: Twins) -> None:
    def use(directory: Path) -> object:
        fd = held(directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            (directory / "file").rename(directory / "renamed")

            def attempt() -> bool:
                other = os.open(directory / "renamed", os.O_RDWR)
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True

            return in_child(attempt)
        finally:
            os.close(fd)

    assert twins.same(use) is False

"""Doing something in a child process: as another user, or where it may be killed."""

from __future__ import annotations

import faulthandler
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

T = TypeVar("T")

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def in_child(
    function: Callable[[], T], *, uid: int | None = None, gid: int = NOBODY, groups: tuple[int, ...] = ()
) -> T:
    """Run it in a fork; return what it returned, or raise the OSError that it raised.

    :param uid: as this user, with this primary group and these supplementary ones
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: tuple[bool, object]
        try:
            os.close(reading)
            if uid is not None:
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            answer = True, function()
        except OSError as error:
            answer = False, error
        except BaseException:
            answer = False, AssertionError(traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child ended with wait status {status}"
    worked, value = pickle.loads(said)  # noqa: S301 - from our own child
    if worked:
        return value  # type: ignore[no-any-return]
    raise value


def end_of(function: Callable[[], object]) -> int:
    """Run it in a fork; return the signal that ended the child, 0 for none."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        try:
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@contextmanager
def helper(function: Callable[[], object]) -> Iterator[int]:
    """A child that does something and then waits until the block ends; the block begins when it is waiting."""
    ready_reading, ready_writing = os.pipe()
    end_reading, end_writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(ready_reading)
            os.close(end_writing)
            kept = function()
            os.write(ready_writing, b"+")
            os.read(end_reading, 1)
            del kept
            code = 0
        finally:
            os._exit(code)
    os.close(ready_writing)
    os.close(end_reading)
    try:
        assert os.read(ready_reading, 1) == b"+", "the helper failed"
        yield child
    finally:
        os.close(ready_reading)
        os.close(end_writing)
        os.waitpid(child, 0)


@contextmanager
def repeated(action: Callable[[], object]) -> Iterator[None]:
    """A child that does something again and again until the block ends; it must never fail."""
    end_reading, end_writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(end_writing)
            os.set_blocking(end_reading, False)
            while not _at_end(end_reading):
                action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(end_reading)
    try:
        yield
    finally:
        os.close(end_writing)
        _, status = os.waitpid(child, 0)
    assert status == 0, f"what was repeated has failed: wait status {status}"


def _at_end(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False

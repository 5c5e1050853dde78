"""Who is told of a loss, and how long: see tests/crash/test_errors_stay.py for the same through a mount."""

from __future__ import annotations

import errno

import pytest

from tdefs.data.losses import Loss


def tells(loss: Loss, *, kernel_asks: bool = True) -> int:
    """The errno that it tells, 0 for none."""
    try:
        loss.tell(kernel_asks=kernel_asks)
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_loss_is_told_every_time() -> None:
    loss = Loss(errno.EIO, told=True)
    assert [tells(loss) for _ in range(3)] == [errno.EIO] * 3


def test_what_was_told_is_over_when_all_have_closed() -> None:
    assert Loss(errno.EIO, told=True).is_over_when_closed()
    loss = Loss(errno.EIO)
    assert not loss.is_over_when_closed()
    assert tells(loss) == errno.EIO
    assert loss.is_over_when_closed()


def test_what_the_kernel_tells_after_a_close_is_not_told_twice() -> None:
    loss = Loss(errno.EIO, kernel_tells=True)
    assert not loss.is_over_when_closed()
    assert tells(loss) == 0
    assert loss.is_over_when_closed()


def test_what_the_kernel_tells_is_told_by_every_sync_before_the_close() -> None:
    loss = Loss(errno.EIO, kernel_tells=True)
    assert tells(loss) == errno.EIO


def test_a_durable_write_is_told_what_the_kernel_would_tell_a_sync() -> None:
    loss = Loss(errno.EIO, kernel_tells=True)
    loss.is_over_when_closed()
    assert tells(loss, kernel_asks=False) == errno.EIO


def test_what_the_kernel_has_forgotten_is_told() -> None:
    loss = Loss(errno.EIO, kernel_tells=True)
    loss.is_over_when_closed()
    loss.kernel_forgot()
    assert not loss.is_over_when_closed()
    assert tells(loss) == errno.EIO


@pytest.mark.parametrize(
    "later", [Loss(errno.ENOSPC, told=True), Loss(errno.ENOSPC, kernel_tells=True), Loss(errno.ENOSPC)]
)
def test_a_later_failure_does_not_cover_one_that_nobody_was_told_of(later: Loss) -> None:
    loss = Loss(errno.EIO).followed_by(later)
    assert not loss.is_over_when_closed()
    assert tells(loss) == errno.ENOSPC


def test_a_later_failure_that_nobody_was_told_of_is_told_though_an_earlier_was() -> None:
    loss = Loss(errno.EIO, told=True).followed_by(Loss(errno.ENOSPC))
    assert not loss.is_over_when_closed()

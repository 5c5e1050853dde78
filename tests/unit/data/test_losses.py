"""To which program a loss is reported, and how long. tests/crash/test_errors_stay.py tests the same on a mount."""

from __future__ import annotations

import errno

import pytest

from tdefs.data.losses import NEXT, Event, Loss, Losses

FAILED = (Event.FAILED_UNNOTICED, Event.FAILED_ANSWERED, Event.FAILED_WRITE_BACK)
SYNCS = (Event.SYNC_OF_KERNEL, Event.SYNC_OF_WRITE)


def lost(event: Event) -> Losses:
    losses = Losses()
    losses.failed(errno.EIO, event)
    return losses


def reports(losses: Losses, event: Event = Event.SYNC_OF_KERNEL) -> int:
    """The errno that a sync fails with, 0 for none."""
    try:
        losses.report(event)
    except OSError as error:
        return error.errno or -1
    return 0


def is_over_when_closed(losses: Losses) -> bool:
    losses.closed_by_all()
    return not losses


def test_a_loss_is_told_every_time() -> None:
    losses = lost(Event.FAILED_ANSWERED)
    assert [reports(losses) for _ in range(3)] == [errno.EIO] * 3


def test_what_was_told_is_over_when_all_have_closed() -> None:
    assert is_over_when_closed(lost(Event.FAILED_ANSWERED))
    losses = lost(Event.FAILED_UNNOTICED)
    assert not is_over_when_closed(losses)
    assert reports(losses) == errno.EIO
    assert is_over_when_closed(losses)


def test_what_the_kernel_tells_after_a_close_is_not_told_twice() -> None:
    losses = lost(Event.FAILED_WRITE_BACK)
    assert not is_over_when_closed(losses)
    assert reports(losses) == 0
    assert is_over_when_closed(losses)


def test_what_the_kernel_tells_is_told_by_every_sync_before_the_close() -> None:
    assert reports(lost(Event.FAILED_WRITE_BACK)) == errno.EIO


def test_a_durable_write_is_told_what_the_kernel_would_tell_a_sync() -> None:
    losses = lost(Event.FAILED_WRITE_BACK)
    losses.closed_by_all()
    assert reports(losses, Event.SYNC_OF_WRITE) == errno.EIO


def test_what_the_kernel_has_forgotten_is_told() -> None:
    losses = lost(Event.FAILED_WRITE_BACK)
    losses.closed_by_all()
    losses.kernel_forgot()
    assert not is_over_when_closed(losses)
    assert reports(losses) == errno.EIO


@pytest.mark.parametrize("later", FAILED)
def test_a_later_failure_does_not_cover_one_that_nobody_was_told_of(later: Event) -> None:
    losses = lost(Event.FAILED_UNNOTICED)
    losses.failed(errno.ENOSPC, later)
    assert not is_over_when_closed(losses)
    assert reports(losses) == errno.ENOSPC


def test_a_later_failure_that_nobody_was_told_of_is_told_though_an_earlier_was() -> None:
    losses = lost(Event.FAILED_ANSWERED)
    losses.failed(errno.ENOSPC, Event.FAILED_UNNOTICED)
    assert not is_over_when_closed(losses)


def test_every_state_has_an_answer_to_every_event() -> None:
    assert set(NEXT) == set(Loss)
    for state in Loss:
        assert set(NEXT[state]) == set(Event)


#: In the order of Event: three failures, a sync of the kernel's, one of a write, a close by all,
#: the forgetting. A sync that fails is marked with "!".
TABLE = {
    Loss.NONE: "UNREPORTED REPORTED KERNEL_REPORTS NONE NONE NONE NONE",
    Loss.UNREPORTED: "UNREPORTED UNREPORTED UNREPORTED !REPORTED !REPORTED UNREPORTED UNREPORTED",
    Loss.REPORTED: "UNREPORTED REPORTED KERNEL_REPORTS !REPORTED !REPORTED NONE REPORTED",
    Loss.KERNEL_REPORTS: (
        "UNREPORTED REPORTED KERNEL_REPORTS !REPORTED !REPORTED KERNEL_REPORTS_ASLEEP UNREPORTED"
    ),
    Loss.KERNEL_REPORTS_ASLEEP: (
        "UNREPORTED REPORTED KERNEL_REPORTS KERNEL_REPORTED !REPORTED KERNEL_REPORTS_ASLEEP UNREPORTED"
    ),
    Loss.KERNEL_REPORTED: "UNREPORTED REPORTED KERNEL_REPORTS KERNEL_REPORTED !REPORTED NONE REPORTED",
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", Loss)
def test_each_event_leads_to_one_state_and_a_sync_fails_or_not(state: Loss, event: Event) -> None:
    losses = Losses()
    if state is not Loss.NONE:
        losses.failed(errno.EIO, Event.FAILED_UNNOTICED)
    losses.state = state
    expected = TABLE[state].split()[list(Event).index(event)]
    found = 0
    if event in FAILED:
        losses.failed(errno.ENOSPC, event)
    elif event in SYNCS:
        found = reports(losses, event)
    elif event is Event.CLOSED_BY_ALL:
        losses.closed_by_all()
    else:
        losses.kernel_forgot()
    assert losses.state is Loss[expected.removeprefix("!")]
    assert found == (errno.EIO if expected.startswith("!") else 0)


def test_a_sync_fails_with_the_errno_of_the_latest_failure() -> None:
    losses = lost(Event.FAILED_WRITE_BACK)
    losses.failed(errno.ENOSPC, Event.FAILED_ANSWERED)
    assert reports(losses) == errno.ENOSPC

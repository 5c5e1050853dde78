"""When a daemon passes for frozen. Covers Patience of tdefs/daemon/watchdog.py."""

from __future__ import annotations

import pytest

from tdefs.daemon.watchdog import Patience


def intervals_until_over(patience: Patience, most: int = 100) -> int:
    """After how many intervals without an answer it is over."""
    return next(
        number
        for number in range(1, most)
        if patience.add_interval(patience.interval, answered=False, waits_for_disk=False)
    )


@pytest.mark.parametrize("seconds", [1, 2, 50, 60, 3600])
def test_several_pings_without_an_answer_and_all_of_the_time_must_have_passed(seconds: int) -> None:
    patience = Patience(seconds)
    count = intervals_until_over(patience, 1000)
    assert count >= 5
    assert seconds <= count * patience.interval < seconds + 2 * patience.interval


@pytest.mark.parametrize("reason", ["an answer", "the disk", "a suspended machine"])
def test_one_reason_not_to_think_so_begins_the_time_anew(reason: str) -> None:
    patience = Patience(60)
    usual = intervals_until_over(Patience(60))
    for _ in range(usual - 1):
        assert not patience.add_interval(patience.interval, answered=False, waits_for_disk=False)
    elapsed = 3600 if reason == "a suspended machine" else patience.interval
    assert not patience.add_interval(elapsed, answered=reason == "an answer", waits_for_disk=reason == "the disk")
    assert intervals_until_over(patience) == usual

"""A key server that is slow or away: who waits is told why, it is asked again, and there is an end."""

from __future__ import annotations

import time

import pytest

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.errors import Exit, TdefsError
from tdefs.keys.failures import UnreachableError
from tdefs.keys.sources import asking
from tdefs.keys.sources.asking import attempt


class Server:
    """Answers after a number of failures."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    def ask(self) -> str:
        self.asked += 1
        if self.asked <= self.failures:
            raise UnreachableError("nobody answers at kms:5696", detail="connection refused")
        return "the answer"


def test_a_server_that_answers_is_asked_once_and_nothing_is_told() -> None:
    server, told = Server(0), list[str]()
    assert attempt(server.ask, "kms", note=told.append) == "the answer"
    assert (server.asked, told) == (1, [])


def test_it_is_asked_again_and_each_failure_told_with_its_reason() -> None:
    server, told = Server(2), list[str]()
    assert attempt(server.ask, "kms", note=told.append) == "the answer"
    assert server.asked == 3
    reasons = [line for line in told if line.startswith("nobody answers at kms:5696: connection refused; trying")]
    assert len(reasons) == 2


def test_the_last_failure_is_raised_within_the_limit() -> None:
    server, told = Server(1000), list[str]()
    began = time.monotonic()
    with pytest.raises(UnreachableError) as caught:
        attempt(server.ask, "kms", patience_seconds=2, note=told.append)
    assert 0.4 < time.monotonic() - began < 4
    assert 2 <= server.asked == len(told) + 1
    assert caught.value.exit_code is Exit.KEY_SERVER_UNREACHABLE


def test_another_error_ends_it_at_once() -> None:
    def refuse() -> None:
        raise TdefsError(Exit.KEY_SERVER_REFUSED, "not you")

    with pytest.raises(TdefsError, match="not you"):
        attempt(refuse, "kms", note=pytest.fail)


def test_who_waits_is_told_for_what(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(asking, "NOTICE_SECONDS", 0.05)
    attempt(lambda: time.sleep(0.3), 'key source "kms1"', note=TerminalDialogue().note)
    assert capsys.readouterr().err == 'tdefs: waiting for key source "kms1"\n'

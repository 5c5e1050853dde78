"""A person types a recovery code at the terminal: it is not shown, and a mistyped character is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdefs.cli.protector import command as protector
from tdefs.errors import Exit
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume
from tests.support.terminal import Terminal
from tests.support.volume import TDEFS

PROMPT = "Recovery code: "


@pytest.fixture
def code(small: SmallVolume, command: Command) -> str:
    """The code of a second protector."""
    words = ("--volume", small.volume.backing, "--key-command", KEY_COMMAND, "--recovery-code")
    found = re.search(r"(?:[0-9A-Z]{6}-){6}[0-9A-Z]{6}", command.run(protector, "add", *words)[1])
    assert found is not None
    return found[0]


def typed(small: SmallVolume, text: str, *words: str | Path) -> tuple[int, str]:
    """Types it where ``tdefs`` asks for it; returns the exit code and all that the terminal showed."""
    with Terminal([TDEFS, *words, "--recovery-code"]) as terminal:
        terminal.expect(PROMPT)
        terminal.press(f"{text}\n")
        code, echoes = terminal.end()
        assert echoes, "the terminal stays without echo"
        assert terminal.unread == 0
        return code, terminal.shown


def test_code_unlocks_as_a_person_types_it_and_is_not_shown(small: SmallVolume, code: str) -> None:
    small.encrypt("base/5/16384", b"content")
    for text in (code, code.lower().replace("-", " ")):
        exit_code, shown = typed(small, text, "cat", "base/5/16384", "--volume", small.volume.backing)
        assert exit_code == Exit.OK
        assert "content" in shown
        assert text[:6] not in shown
        assert text[-6:] not in shown


def test_mistyped_character_is_found_and_not_shown(small: SmallVolume, code: str) -> None:
    before = small.volume.keystore.read_bytes()
    wrong = code[:14] + ("0" if code[14] != "0" else "2") + code[15:]
    words = ("key", "rotate-master", "--volume", small.volume.backing)
    exit_code, shown = typed(small, wrong, *words)
    assert exit_code == 67
    assert "group 3 is wrong" in shown
    assert not any(group in shown for group in wrong.split("-"))
    assert small.volume.keystore.read_bytes() == before
    # the same person tries again
    assert typed(small, code, *words)[0] == Exit.OK


def test_code_that_was_printed_but_replaced_is_another_error(
    small: SmallVolume, code: str, command: Command
) -> None:
    words = ("pr_2", "--volume", small.volume.backing, "--key-command", KEY_COMMAND, "--new-recovery-code")
    command.run(protector, "change", *words)
    exit_code, shown = typed(small, code, "key", "verify", "--volume", small.volume.backing)
    assert exit_code == Exit.WRONG_SECRET
    assert code[:6] not in shown

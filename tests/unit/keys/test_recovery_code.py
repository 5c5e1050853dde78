"""The promises of tdefs.keys.protectors.recovery and its protector: what a person mistypes is found, and where."""

from __future__ import annotations

import random

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.keys.protectors.base import NotMineError, WrongSecretError
from tdefs.keys.protectors.recovery import CODE_BITS, RecoveryCodeProtector, new_code, read_code, show_code
from tdefs.keys.wrapping import WrapContext
from tests.unit.keys.keystore_samples import VOLUME_ID, everything_shown

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DICE = random.Random(5)
CODES = [0, (1 << CODE_BITS) - 1, DICE.getrandbits(CODE_BITS), DICE.getrandbits(CODE_BITS)]
CONTEXT = WrapContext(VOLUME_ID, "protector key by recovery-code", "pr_1", 0, "pr_1")
SECRET = bytes(range(32))


def mistyped(text: str) -> str:
    with pytest.raises(TdefsError) as caught:
        read_code(text)
    assert caught.value.exit_code == Exit.RECOVERY_CODE_MISTYPED
    return caught.value.detail


def test_code_has_more_than_160_random_bits() -> None:
    assert CODE_BITS >= 160
    codes = [new_code() for _ in range(64)]
    assert len(set(codes)) == 64
    seen = 0
    for code in codes:
        assert code < 1 << CODE_BITS
        seen |= code
    assert seen == (1 << CODE_BITS) - 1


@pytest.mark.parametrize("code", CODES)
def test_code_is_read_as_it_is_printed_or_as_people_write_it(code: int) -> None:
    shown = show_code(code)
    assert [len(group) for group in shown.split("-")] == [6] * 7
    assert set(shown) <= set(ALPHABET + "-")
    for text in (shown, shown.lower(), shown.replace("-", " "), shown.replace("-", ""), f"  {shown}\r\n"):
        assert read_code(text) == code
    assert read_code(shown.replace("0", "o").replace("1", "l")) == code
    assert read_code(shown.replace("0", "O").replace("1", "I")) == code


@pytest.mark.parametrize("code", CODES)
def test_any_one_mistyped_character_is_found_and_its_group_named(code: int) -> None:
    shown = show_code(code)
    for place, right in enumerate(shown):
        group = 1 + shown[:place].count("-")
        for wrong in ALPHABET if right != "-" else "":
            if wrong != right:
                assert mistyped(shown[:place] + wrong + shown[place + 1 :]) == f"group {group} is wrong"


@pytest.mark.parametrize("code", CODES)
def test_exchanged_neighbours_and_exchanged_groups_are_found(code: int) -> None:
    shown = show_code(code)
    plain = shown.replace("-", "")
    for place in range(len(plain) - 1):
        one, other = plain[place], plain[place + 1]
        if one != other:
            assert "wrong" in mistyped(plain[:place] + other + one + plain[place + 2 :])
    groups = shown.split("-")
    for first in range(7):
        for second in range(first):
            moved = list(groups)
            moved[first], moved[second] = groups[second], groups[first]
            if moved != groups:
                assert mistyped("-".join(moved)) == f"groups {second + 1}, {first + 1} are wrong"


def test_missing_and_doubled_characters_are_found() -> None:
    shown = show_code(CODES[2])
    assert mistyped(shown[:-1]) == "group 7 has 5 characters, not 6"
    assert mistyped(shown[:8] + shown[7:]) == "group 2 has 7 characters, not 6"
    assert mistyped(shown.replace("-", "")[1:]) == "it has 41 characters, not 42"
    assert mistyped(shown[:-7]) == "it has 36 characters, not 42"
    assert mistyped(shown[:9] + "u" + shown[10:]) == "group 2 has a character that is in no recovery code"
    assert mistyped(shown[:-1] + "\u00e9").startswith("group 7")


def entry_of(protector: RecoveryCodeProtector) -> ProtectorEntry:
    wrapped = protector.wrap(SECRET, CONTEXT)
    return ProtectorEntry("pr_1", protector.kind, now(), "mk_1", wrapped.params, wrapped.wrapped)


def protector(text: str) -> RecoveryCodeProtector:
    return RecoveryCodeProtector(text.encode)


def test_code_unwraps_what_it_wrapped_however_it_is_typed() -> None:
    shown = show_code(CODES[3])
    entry = entry_of(protector(shown))
    assert protector(shown.lower().replace("-", " ") + "\n").unwrap(entry, CONTEXT) == SECRET
    with pytest.raises(WrongSecretError) as caught:
        protector(show_code(CODES[2])).unwrap(entry, CONTEXT)
    assert "typed as it was printed" in caught.value.detail


def test_error_of_a_mistyped_code_shows_nothing_of_it() -> None:
    shown = show_code(CODES[3])
    with pytest.raises(TdefsError) as caught:
        read_code(shown[:-1] + ("0" if shown[-1] != "0" else "2"))
    # less the lines of this test and of the code that a traceback has
    said = caught.value.render() + repr(caught.value.args)
    assert not any(group in said for group in shown.split("-"))


def test_mistyped_empty_or_foreign_codes_are_told_apart() -> None:
    shown = show_code(CODES[3])
    entry = entry_of(protector(shown))
    for text, code in ((f"{shown[:-1]}?", Exit.RECOVERY_CODE_MISTYPED), ("\n", Exit.NO_SECRET)):
        with pytest.raises(TdefsError) as caught:
            protector(text).unwrap(entry, CONTEXT)
        assert caught.value.exit_code == code
        assert shown[:-1] not in everything_shown(caught.value)
    with pytest.raises(TdefsError) as caught:
        RecoveryCodeProtector(lambda: b"\xff" * 42).unwrap(entry, CONTEXT)
    assert caught.value.exit_code == Exit.RECOVERY_CODE_MISTYPED
    with pytest.raises(NotMineError):
        protector(shown).unwrap(ProtectorEntry("pr_1", "command", now(), "mk_1", {}, b""), CONTEXT)

"""A recovery code as a person writes and types it: groups of characters, each with a checksum of its own.

Seven groups of six characters, such as ``7K2M9Q-...``: five that carry 5 bits each, 175 in all, and one that
checks the group. The alphabet is Crockford's, without I, L, O and U; I and L are read as 1, and O as 0. Upper
and lower case, dashes and white space make no difference.

The check is a sum over the field of 32 elements, each character with a factor of its own, and must be the
group's number. So it fails for any one wrong character, for two exchanged neighbours, and for two exchanged
groups.
"""

from __future__ import annotations

import os

from tdefs.errors import Exit, TdefsError

GROUPS = 7
GROUP_CHARACTERS = 6
CODE_BITS = 5 * GROUPS * (GROUP_CHARACTERS - 1)

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = {character: value for value, character in enumerate(_ALPHABET)} | {"I": 1, "L": 1, "O": 0}
_BITS_OF_CHARACTER = 5
# x^5 + x^2 + 1, of which the element 2 generates all others.
_POLYNOMIAL = 0b100101


def new_code() -> int:
    """Return a new code: 175 random bits."""
    return int.from_bytes(os.urandom(-(-CODE_BITS // 8))) >> (-CODE_BITS % 8)


def show_code(code: int) -> str:
    """Return the code as it is printed: groups with dashes between them."""
    characters = [
        code >> _BITS_OF_CHARACTER * place & 31 for place in reversed(range(CODE_BITS // _BITS_OF_CHARACTER))
    ]
    size = GROUP_CHARACTERS - 1
    groups = [characters[at : at + size] for at in range(0, len(characters), size)]
    return "-".join(
        "".join(_ALPHABET[value] for value in (*group, _weighted_sum(group) ^ number))
        for number, group in enumerate(groups, 1)
    )


def read_code(text: str) -> int:
    """Return the code that was typed. Raises TdefsError(RECOVERY_CODE_MISTYPED), which says where."""
    written = text.upper().replace("-", " ").split()
    _check_characters(written)
    typed = "".join(written)
    if len(typed) != GROUPS * GROUP_CHARACTERS:
        raise _mistyped(_wrong_length(written, len(typed)))
    groups = [typed[at : at + GROUP_CHARACTERS] for at in range(0, len(typed), GROUP_CHARACTERS)]
    values = [[_READ_AS[character] for character in group] for group in groups]
    wrong = [
        str(number) for number, group in enumerate(values, 1) if _weighted_sum(group[:-1]) ^ group[-1] != number
    ]
    if wrong:
        raise _mistyped(
            f"group {wrong[0]} is wrong" if len(wrong) == 1 else f"groups {', '.join(wrong)} are wrong"
        )
    code = 0
    for group in values:
        for value in group[:-1]:
            code = code << _BITS_OF_CHARACTER | value
    return code


def _weighted_sum(values: list[int]) -> int:
    """Return the sum of the values times 2, 4, 8, ... in the field of 32 elements."""
    total = 0
    for power, value in enumerate(values, 1):
        for _ in range(power):
            value <<= 1
            if value & 32:
                value ^= _POLYNOMIAL
        total ^= value
    return total


def _check_characters(written: list[str]) -> None:
    for number, group in enumerate(written, 1):
        if any(character not in _READ_AS for character in group):
            raise _mistyped(f"group {number} has a character that no recovery code has")


def _wrong_length(written: list[str], typed: int) -> str:
    """Say which group has the wrong length, if it was typed in groups."""
    if len(written) == GROUPS:
        wrong = [number for number, group in enumerate(written, 1) if len(group) != GROUP_CHARACTERS]
        return f"group {wrong[0]} has {len(written[wrong[0] - 1])} characters, not {GROUP_CHARACTERS}"
    return f"it has {typed} characters, not {GROUPS * GROUP_CHARACTERS}"


def _mistyped(detail: str) -> TdefsError:
    return TdefsError(
        Exit.RECOVERY_CODE_MISTYPED,
        "the recovery code is mistyped",
        detail=detail,
        hint=f"it has {GROUPS} groups of {GROUP_CHARACTERS} characters, letters without I, L, O and U, and digits",
    )

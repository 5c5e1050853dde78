"""The recovery code: a long random code, printed once, that a person keeps and types; and its protector.

A code has seven groups of six characters, such as ``7K2M9Q-...``: in each group, five characters carry 5 bits
each, 175 bits in all, and one checks the group. The alphabet is Crockford's, without I, L, O and U; I and L are
read as 1, and O as 0. Upper and lower case, dashes and white space make no difference.

The check is a sum over the field of 32 elements, in which each character has a factor of its own. The sum must be
the group's number. So the check finds any one wrong character, two exchanged neighbours, and two exchanged
groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property

from tdefs.errors import Exit, NoSecretError, TdefsError
from tdefs.keys.protectors.base import Obtained, Parameters, Protector, WrongSecretError
from tdefs.keys.wrapping import WrapContext

GROUPS = 7
GROUP_CHARACTERS = 6
CODE_BITS = 5 * GROUPS * (GROUP_CHARACTERS - 1)

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = {character: value for value, character in enumerate(_ALPHABET)} | {"I": 1, "L": 1, "O": 0}
_BITS_OF_CHARACTER = 5
# x^5 + x^2 + 1; the element 2 generates all other elements.
_POLYNOMIAL = 0b100101


class RecoveryCodeProtector(Protector):
    """A recovery code: 175 random bits."""

    kind = "recovery-code"
    words = "the recovery code"
    purpose = b"tdefs v1 recovery code wrapping key"

    def __init__(self, read: Callable[[], bytes]) -> None:
        """``read`` returns what was typed, in ASCII; it is called once, when needed."""
        super().__init__()
        self._read = read

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector.

        :raises TdefsError: RECOVERY_CODE_MISTYPED; NO_SECRET if it is empty.
        """
        return Obtained(self._code)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector.

        :raises TdefsError: as :meth:`obtain`.
        """
        return self._code

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(
            "wrong recovery code",
            detail="it is typed as it was printed, but it is not this keystore's, or was changed or removed",
        )

    @cached_property
    def _code(self) -> bytes:
        # Decoded with replacement: a UnicodeDecodeError would carry what was typed.
        typed = self._read().decode("ascii", "replace")
        if not typed.strip():
            raise NoSecretError("the recovery code is empty")
        return read_code(typed).to_bytes(-(-CODE_BITS // 8))


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
    """Return the code that was typed.

    :raises TdefsError: RECOVERY_CODE_MISTYPED; the error says where.
    """
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
            raise _mistyped(f"group {number} has a character that is in no recovery code")


def _wrong_length(written: list[str], typed: int) -> str:
    """Return which group has the wrong length, if the code was typed in groups."""
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

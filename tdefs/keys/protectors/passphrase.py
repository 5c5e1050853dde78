"""The passphrase protector: scrypt makes a wrapping key from something a person can remember."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tdefs.errors import Exit, NoSecretError, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.memory import with_memory
from tdefs.keys.protectors.base import (
    WRAPPING_KEY_BYTES,
    Obtained,
    Parameters,
    Protector,
    WrongSecretError,
    malformed_is_damage,
)
from tdefs.keys.wrapping import WrapContext

MIN_PASSPHRASE_BYTES = 12
_SALT_BYTES = 16
_LESS_MEMORY = (
    "free memory, or raise the limit of this process; a passphrase that is made with a smaller --scrypt-cost needs"
    " less, and other kinds of protectors need next to none"
)
# A keystore from elsewhere must not be able to take the host's memory, or hours of its time.
_MAX_MEMORY_BYTES = 4 << 30
_MAX_WORK = 1 << 25
#: The most for all passphrases of a keystore together, in n·r·p: as much as 16 of the default cost.
MAX_TOTAL_WORK = 1 << 27

#: N of scrypt is 2 to the power of this: by default, and the least and the most that can be chosen.
DEFAULT_COST = 20
LEAST_COST = 14
MOST_COST = 21


@dataclass(frozen=True)
class ScryptCost:
    """The cost of scrypt (RFC 7914): it passes through 128·n·r bytes of memory p times.

    The default takes 1 GiB and some seconds.
    """

    n: int = 2**DEFAULT_COST
    r: int = 8
    p: int = 1

    def is_sane(self) -> bool:
        """Return whether scrypt is defined for them, and needs at most 4 GiB and 4 times the default work."""
        return (
            min(self.n, self.r, self.p) >= 1
            and self.n >= 2
            and self.n.bit_count() == 1
            and self.n.bit_length() - 1 < 16 * self.r
            and self.memory_bytes() <= _MAX_MEMORY_BYTES
            and self.work() <= _MAX_WORK
        )

    def work(self) -> int:
        """Return n·r·p. The time of one derivation is proportional to it."""
        return self.n * self.r * self.p

    def memory_bytes(self) -> int:
        """Return the bytes of memory that one derivation takes: the table and the p blocks."""
        return 128 * self.r * (self.n + self.p)


class PassphraseProtector(Protector):
    """A passphrase, as bytes: what was typed in UTF-8, or what a file holds."""

    kind = "passphrase"
    words = "the passphrase"
    purpose = b""  # the output of scrypt is the wrapping key, since each entry has its own salt
    members = ("kdf", "n", "r", "p", "salt")

    def __init__(self, read_passphrase: Callable[[], bytes], *, cost: ScryptCost | None = None) -> None:
        """``read_passphrase`` is called once, when needed; ``cost`` is for wrapping, not for unwrapping."""
        super().__init__()
        self._read_passphrase = read_passphrase
        self._cost = cost or ScryptCost()
        self._stretched: dict[tuple[bytes, ScryptCost], bytes] = {}

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector.

        :raises TdefsError: PASSPHRASE_TOO_SHORT for a passphrase of fewer than 12 bytes.
        """
        if len(self._passphrase) < MIN_PASSPHRASE_BYTES:
            raise TdefsError(
                Exit.PASSPHRASE_TOO_SHORT,
                "the new passphrase is too short",
                detail=f"a new passphrase has at least {MIN_PASSPHRASE_BYTES} bytes",
                hint="use several words that nobody would guess; a sentence is easier to remember",
            )
        salt, cost = os.urandom(_SALT_BYTES), self._cost
        params: dict[str, str | int] = {"kdf": "scrypt", "n": cost.n, "r": cost.r, "p": cost.p, "salt": salt.hex()}
        return Obtained(self._stretch(salt, cost), params)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector.

        :raises TdefsError: OS_ERROR if there is not enough memory for the stored cost.
        """
        return self._stretch(*_salt_and_cost(params))

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(
            "wrong passphrase", hint="check the keyboard layout, and that the keystore is the right one"
        )

    def like(self, entry: ProtectorEntry) -> PassphraseProtector:
        """See Protector. It has the cost of ``entry``."""
        return PassphraseProtector(lambda: self._passphrase, cost=_cost_of(entry))

    @cached_property
    def _passphrase(self) -> bytes:
        passphrase = self._read_passphrase()
        if not passphrase:
            raise NoSecretError("the passphrase is empty")
        return passphrase

    def _stretch(self, salt: bytes, cost: ScryptCost) -> bytes:
        """Return the wrapping key; it is kept, since saving a keystore asks for the same one several times."""
        if (salt, cost) not in self._stretched:
            passphrase = self._passphrase

            def derive() -> bytes:
                return Scrypt(salt=salt, length=WRAPPING_KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(
                    passphrase
                )

            purpose = "to derive a key from the passphrase"
            self._stretched[salt, cost] = with_memory(derive, cost.memory_bytes(), purpose, _LESS_MEMORY)
        return self._stretched[salt, cost]


def scrypt_work(entry: ProtectorEntry) -> int:
    """Return n·r·p of an entry of this kind.

    :raises TdefsError: KEYSTORE_DAMAGED for parameters that this module never writes.
    """
    return _cost_of(entry).work()


def _cost_of(entry: ProtectorEntry) -> ScryptCost:
    with malformed_is_damage():
        return _salt_and_cost(Parameters(entry, PassphraseProtector.members))[1]


def _salt_and_cost(params: Parameters) -> tuple[bytes, ScryptCost]:
    params.choice("kdf", ("scrypt",))
    salt = params.hex("salt", _SALT_BYTES)
    cost = ScryptCost(*(params.integer(name, 1, _MAX_WORK) for name in ("n", "r", "p")))
    if not cost.is_sane():
        raise params.malformed("n", f"the cost of scrypt is invalid, or beyond {_MAX_MEMORY_BYTES >> 30} GiB")
    return salt, cost

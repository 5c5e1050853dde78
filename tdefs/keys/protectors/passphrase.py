"""The passphrase protector: scrypt makes a wrapping key from something a person can remember."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.memory import with_memory
from tdefs.keys.protectors.base import NotMineError, Protector, WrappedProtectorKey, WrongSecretError
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

MIN_PASSPHRASE_BYTES = 12
_SALT_BYTES = 16
_LESS_MEMORY = (
    "free memory, or raise the limit of this process; a passphrase that is made with a smaller --scrypt-cost needs"
    " less, and other kinds of protectors need next to none"
)
_WRAPPING_KEY_BYTES = 32
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
    """The cost of scrypt (RFC 7914): 128·n·r bytes of memory, gone through p times.

    The default takes 1 GiB and some seconds.
    """

    n: int = 2**DEFAULT_COST
    r: int = 8
    p: int = 1

    def is_sane(self) -> bool:
        """Tell whether scrypt is defined for the numbers, and its memory (4 GiB) and time are bearable.

        The work n·r·p is limited to 4 times that of the default.
        """
        return (
            min(self.n, self.r, self.p) >= 1
            and self.n >= 2
            and self.n.bit_count() == 1
            and self.n.bit_length() - 1 < 16 * self.r
            and self.memory_bytes() <= _MAX_MEMORY_BYTES
            and self.work() <= _MAX_WORK
        )

    def work(self) -> int:
        """Return what the time of one derivation is proportional to: n·r·p."""
        return self.n * self.r * self.p

    def memory_bytes(self) -> int:
        """Return the memory that one derivation takes: the table and the p blocks."""
        return 128 * self.r * (self.n + self.p)


class PassphraseProtector(Protector):
    """A passphrase, as bytes: what was typed in UTF-8, or what a file holds."""

    kind = "passphrase"
    words = "the passphrase"

    def __init__(self, read_passphrase: Callable[[], bytes], *, cost: ScryptCost | None = None) -> None:
        """``read_passphrase`` is called once, when needed; ``cost`` is for wrapping, not for unwrapping."""
        self._read_passphrase = read_passphrase
        self._cost = cost or ScryptCost()
        self._stretched: dict[tuple[bytes, ScryptCost], bytes] = {}

    @cached_property
    def _passphrase(self) -> bytes:
        passphrase = self._read_passphrase()
        if not passphrase:
            raise TdefsError(Exit.NO_SECRET, "the passphrase is empty")
        return passphrase

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See Protector. Raises TdefsError(PASSPHRASE_TOO_SHORT) for one of fewer than 12 bytes."""
        if len(self._passphrase) < MIN_PASSPHRASE_BYTES:
            raise TdefsError(
                Exit.PASSPHRASE_TOO_SHORT,
                "the new passphrase is too short",
                detail=f"a new passphrase has at least {MIN_PASSPHRASE_BYTES} bytes",
                hint="use several words that nobody would guess; a sentence is easier to remember",
            )
        salt = os.urandom(_SALT_BYTES)
        wrapping_key = self._stretch(salt, self._cost)
        return WrappedProtectorKey(
            params={
                "kdf": "scrypt",
                "n": self._cost.n,
                "r": self._cost.r,
                "p": self._cost.p,
                "salt": salt.hex(),
            },
            wrapped=wrap_secret(wrapping_key, protector_key, context),
        )

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See Protector. Raises TdefsError(OS_ERROR) where memory for the stored cost is lacking."""
        if entry.kind != self.kind:
            raise NotMineError
        salt, cost = _read_params(entry)
        try:
            return unwrap_secret(self._stretch(salt, cost), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                "wrong passphrase", hint="check the keyboard layout, and that the keystore is the right one"
            ) from None

    def like(self, entry: ProtectorEntry) -> PassphraseProtector:
        """See Protector. It has the cost of ``entry``."""
        return PassphraseProtector(lambda: self._passphrase, cost=_read_params(entry)[1])

    def _stretch(self, salt: bytes, cost: ScryptCost) -> bytes:
        """Return the wrapping key; to save a keystore is to ask for one more than once."""
        if (salt, cost) not in self._stretched:
            passphrase = self._passphrase

            def derive() -> bytes:
                return Scrypt(salt=salt, length=_WRAPPING_KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(
                    passphrase
                )

            purpose = "to derive a key from the passphrase"
            self._stretched[salt, cost] = with_memory(derive, cost.memory_bytes(), purpose, _LESS_MEMORY)
        return self._stretched[salt, cost]


def scrypt_work(entry: ProtectorEntry) -> int:
    """Return n·r·p of an entry of this kind. TdefsError(KEYSTORE_DAMAGED) for what this module never writes."""
    return _read_params(entry)[1].work()


def _read_params(entry: ProtectorEntry) -> tuple[bytes, ScryptCost]:
    """Return salt and cost of an entry. TdefsError(KEYSTORE_DAMAGED) for what this module never writes."""
    where = f"protector {entry.id}"
    try:
        members = fields.read_object(dict(entry.params), where, ("kdf", "n", "r", "p", "salt"))
        fields.read_choice(members["kdf"], f"{where}: kdf", ("scrypt",))
        salt = fields.read_hex(members["salt"], f"{where}: salt", _SALT_BYTES)
        n, r, p = (fields.read_int(members[name], f"{where}: {name}", 1, _MAX_WORK) for name in ("n", "r", "p"))
    except fields.MalformedError as error:
        raise damaged(str(error)) from None
    cost = ScryptCost(n, r, p)
    if not cost.is_sane():
        raise damaged(f"{where}: the cost of scrypt is invalid or beyond {_MAX_MEMORY_BYTES >> 30} GiB")
    return salt, cost

"""What a protector is: it wraps a protector key and, given the same secret later, unwraps it.

The protector key, 32 bytes, opens the master key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tdefs.errors import DistinguishedError, Exit, TdefsError
from tdefs.keys.dialogue import Warn
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.wrapping import WrapContext


class NotMineError(Exception):
    """The entry was made by a protector of another kind. This is no failure: the next entry may fit."""


class WrongSecretError(DistinguishedError):
    """The entry is of this kind, but another secret made it."""

    code = Exit.WRONG_SECRET


@dataclass(frozen=True)
class WrappedProtectorKey:
    """What a protector puts in the keystore: ``params`` (no secret) and the wrapped protector key."""

    params: Mapping[str, str | int]
    wrapped: bytes


@dataclass(frozen=True)
class Made:
    """What ``wrap`` has made outside of the keystore, such as a key on a server.

    ``what`` names it, and ``removal`` is the command that removes it. ``kept`` is the reason if ``forget`` leaves
    it alone, and empty if ``forget`` removes it.
    """

    what: str
    removal: str
    kept: str = ""

    def warn_left(self, reason: str, warn: Warn) -> None:
        """Warn that this stays although no keystore needs it."""
        warn(
            f"{self.what}, which this command has made, is left behind",
            detail=reason,
            hint=f"to remove it: {self.removal}",
        )

    def remove(self, forget: Callable[[], object], warn: Warn) -> None:
        """Remove what no keystore needs, by ``forget``; warn if it stays. Raise nothing for that."""
        if self.kept:
            self.warn_left(self.kept, warn)
            return
        try:
            forget()
        except TdefsError as error:
            self.warn_left(error.message, warn)
        except OSError as error:
            self.warn_left(error.strerror or str(error), warn)


class Protector(ABC):
    """One secret that a user supplies, of one kind.

    The secret is fetched (asked for, read, or computed by a command) when it is first needed, and is kept in the
    object. So a mistake that is found before that costs the user no typing, and no secret is asked for twice.
    ``wrap`` and ``unwrap`` may therefore raise each TdefsError that fetching it raises.
    """

    kind: ClassVar[str]
    #: The secret's name in a sentence, such as "the passphrase".
    words: ClassVar[str]

    @abstractmethod
    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """Wrap ``protector_key``, 32 bytes, for this ``context``."""

    @abstractmethod
    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """Return the protector key that ``wrap`` put in ``entry`` in the same ``context``.

        :raises NotMineError: the entry is of another kind.
        :raises WrongSecretError: the secret does not fit.
        :raises TdefsError: KEYSTORE_DAMAGED for parameters that this kind never writes.
        """

    def like(self, entry: ProtectorEntry) -> Protector:
        """Return a protector that wraps by this secret in the way ``entry``, which this one opens, was wrapped."""
        del entry
        return self

    def made(self, entry: ProtectorEntry) -> Made | None:
        """Return what ``wrap`` of this object has made outside of the keystore for ``entry``, if anything."""
        del entry
        return None

    def forget(self, entry: ProtectorEntry) -> None:
        """Remove what ``wrap`` made outside of the keystore for ``entry`` alone, if it made anything.

        ``entry`` opens nothing afterwards.

        :raises TdefsError: as ``unwrap`` does.
        :raises OSError: a file cannot be removed.
        """
        del entry

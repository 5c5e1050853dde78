"""What a protector is: something that wraps a protector key and, given the same secret later, unwraps it.

The protector key, 32 bytes, opens the master key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.wrapping import WrapContext


class NotMineError(Exception):
    """The entry was made by a protector of another kind: not a failure, the next entry may fit."""


class WrongSecretError(TdefsError):
    """The entry is of this kind, but another secret made it."""

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(Exit.WRONG_SECRET, message, detail=detail, hint=hint)


@dataclass(frozen=True)
class WrappedProtectorKey:
    """What a protector puts in the keystore: ``params`` (no secret) and the wrapped protector key."""

    params: Mapping[str, str | int]
    wrapped: bytes


@dataclass(frozen=True)
class Made:
    """What ``wrap`` has made outside of the keystore, such as a key on a server.

    ``what`` names it, and ``removal`` is the command that removes it. ``kept`` says why ``forget`` leaves it alone
    all the same; mostly it does not, and ``kept`` is empty.
    """

    what: str
    removal: str
    kept: str = ""


class Protector(ABC):
    """One secret that a user supplies, of one kind.

    The secret is fetched (asked for, read, or computed by a command) when it is first needed and kept in
    the object, so that a mistake that shows before that costs the user no typing, and no secret is asked
    for twice. ``wrap`` and ``unwrap`` may therefore raise whatever TdefsError fetching it gives.
    """

    kind: ClassVar[str]
    #: What people call it in a sentence, such as "the passphrase".
    words: ClassVar[str]

    @abstractmethod
    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """Wrap ``protector_key``, 32 bytes, for this ``context``."""

    @abstractmethod
    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """Return the protector key that ``wrap`` put in ``entry`` in the same ``context``.

        Raises NotMineError for an entry of another kind, WrongSecretError if the secret does not fit, and
        TdefsError(KEYSTORE_DAMAGED) for parameters that this kind never writes.
        """

    def like(self, entry: ProtectorEntry) -> Protector:
        """Return what wraps by this secret in the way in which ``entry``, which this opens, was wrapped."""
        del entry
        return self

    def made(self, entry: ProtectorEntry) -> Made | None:
        """Return what ``wrap`` of this object has made outside of the keystore for ``entry``, if anything."""
        del entry
        return None

    def forget(self, entry: ProtectorEntry) -> None:
        """Remove what ``wrap`` made outside of the keystore for ``entry`` alone, if it made anything.

        ``entry`` opens nothing afterwards. Raises TdefsError as ``unwrap`` does; OSError.
        """
        del entry

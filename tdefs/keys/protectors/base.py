"""What a protector is: it obtains a secret from somewhere, and wraps a protector key with it.

The protector key, 32 bytes, opens the master key.
"""

from __future__ import annotations

import base64
import binascii
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from tdefs.errors import DistinguishedError, Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.dialogue import Warn
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, hkdf_sha256, unwrap_secret, wrap_secret

WRAPPING_KEY_BYTES = 32


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


class Parameters:
    """The parameters of an entry, read strictly. Each method raises MalformedError for what no tdefs writes."""

    def __init__(self, entry: ProtectorEntry, members: Collection[str]) -> None:
        """Check that the entry has exactly these ``members``."""
        self.entry_id = entry.id
        self._where = f"protector {entry.id}"
        self._values = fields.read_object(dict(entry.params), self._where, members)

    @property
    def identity(self) -> frozenset[tuple[str, str | int]]:
        """All parameters together, as a key of a dictionary."""
        return frozenset(self._values.items())

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        """Return a string that ``pattern`` matches as a whole."""
        return fields.read_text(self._values[name], self._at(name), pattern)

    def choice(self, name: str, choices: Collection[str]) -> str:
        """Return a string that is one of ``choices``."""
        return fields.read_choice(self._values[name], self._at(name), choices)

    def integer(self, name: str, least: int, most: int) -> int:
        """Return an integer from ``least`` to ``most``, both included."""
        return fields.read_int(self._values[name], self._at(name), least, most)

    def hex(self, name: str, size: int) -> bytes:
        """Return ``size`` bytes that are written in hexadecimal."""
        return fields.read_hex(self._values[name], self._at(name), size)

    def base64(self, name: str, pattern: re.Pattern[str]) -> bytes:
        """Return the bytes of a base64 text that ``pattern`` matches."""
        text = self.text(name, pattern)
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise self.malformed(name, "expected base64") from None

    def malformed(self, name: str, problem: str) -> fields.MalformedError:
        """Return the error for a parameter with a problem that a subclass finds."""
        return fields.MalformedError(f"{self._at(name)}: {problem}")

    def _at(self, name: str) -> str:
        return f"{self._where}: {name}"


@contextmanager
def malformed_is_damage() -> Iterator[None]:
    """Raise TdefsError(KEYSTORE_DAMAGED) for parameters that are malformed."""
    try:
        yield
    except fields.MalformedError as error:
        raise damaged(str(error)) from None


@dataclass(frozen=True)
class Obtained:
    """A new secret, the parameters by which it is recovered, and what was made outside of the keystore for it."""

    secret: bytes = field(repr=False)
    params: Mapping[str, str | int] = field(default_factory=dict)
    made: Made | None = None


class Protector(ABC):
    """One secret of one kind, which wraps a protector key and, recovered later, unwraps it.

    A subclass says how the secret is obtained, and how the same secret is recovered from the parameters of an
    entry. Deriving the wrapping key, wrapping, unwrapping and reading the parameters is done here, in one way for
    all kinds.

    The secret is fetched (asked for, read, or computed by a command) when it is first needed, and is kept in the
    object. So a mistake that is found before that costs the user no typing, and no secret is asked for twice.
    ``wrap`` and ``unwrap`` may therefore raise each TdefsError that fetching it raises.
    """

    kind: ClassVar[str]
    #: The secret's name in a sentence, such as "the passphrase".
    words: ClassVar[str]
    #: The beginning of HKDF's info (docs/FORMAT.md). The context follows, so that each entry has its own wrapping
    #: key. Without a purpose the secret is the wrapping key: then each entry must have a secret of its own.
    purpose: ClassVar[bytes]
    #: The names of the parameters in an entry.
    members: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._made: dict[bytes, Made] = {}

    @abstractmethod
    def obtain(self, context: WrapContext) -> Obtained:
        """Return the secret to wrap with.

        :raises TdefsError: the secret cannot be had.
        """

    @abstractmethod
    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """Return the secret that :meth:`obtain` returned when these parameters were written.

        :raises NotMineError: the parameters show that another service, key or host made the entry.
        :raises MalformedError: for parameters that :meth:`obtain` never returns.
        :raises TdefsError: the secret cannot be had.
        """

    @abstractmethod
    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        """Return the error for an entry of this kind that the recovered secret does not open."""

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """Wrap ``protector_key``, 32 bytes, for this ``context``.

        :raises TdefsError: as :meth:`obtain`.
        """
        obtained = self.obtain(context)
        wrapped = wrap_secret(self.wrapping_key(obtained.secret, context), protector_key, context)
        if obtained.made is not None:
            self._made[wrapped] = obtained.made
        return WrappedProtectorKey(obtained.params, wrapped)

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """Return the protector key that ``wrap`` put in ``entry`` in the same ``context``.

        :raises NotMineError: the entry is of another kind.
        :raises WrongSecretError: the secret does not fit.
        :raises TdefsError: KEYSTORE_DAMAGED for parameters that this kind never writes; as :meth:`recover`.
        """
        with malformed_is_damage():
            params = self.parameters(entry)
            secret = self.recover(params, context)
        try:
            return unwrap_secret(self.wrapping_key(secret, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise self.wrong_secret(params) from None

    def parameters(self, entry: ProtectorEntry) -> Parameters:
        """Return the parameters of ``entry``.

        :raises NotMineError: it is of another kind.
        :raises MalformedError: it has other members than this kind writes.
        """
        if entry.kind != self.kind:
            raise NotMineError
        return Parameters(entry, self.members)

    def like(self, entry: ProtectorEntry) -> Protector:
        """Return a protector that wraps by this secret in the way ``entry``, which this one opens, was wrapped."""
        return self

    def made(self, entry: ProtectorEntry) -> Made | None:
        """Return what ``wrap`` of this object has made outside of the keystore for ``entry``, if anything."""
        return self._made.get(entry.wrapped)

    def forget(self, entry: ProtectorEntry) -> None:
        """Remove what ``wrap`` made outside of the keystore for ``entry`` alone, if it made anything.

        ``entry`` opens nothing afterwards.

        :raises TdefsError: as ``unwrap`` does.
        :raises OSError: a file cannot be removed.
        """
        del entry

    def wrapping_key(self, secret: bytes, context: WrapContext) -> bytes:
        """Return the 32 bytes that wrap the protector key of the entry that ``context`` names."""
        if not self.purpose:
            return secret
        return hkdf_sha256(secret, self.purpose + context.to_bytes(), WRAPPING_KEY_BYTES)

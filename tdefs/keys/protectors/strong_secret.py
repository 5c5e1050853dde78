"""What protectors share whose secret is as good as a random key: HKDF makes the wrapping key of it."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.protectors.base import NotMineError, Protector, WrappedProtectorKey, WrongSecretError
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

_WRAPPING_KEY_BYTES = 32


class StrongSecretProtector(Protector):
    """A secret of so many random bits that it needs no key stretching. Its entries have no parameters."""

    #: What begins HKDF's info (docs/FORMAT.md); the context follows, so that each entry has its own wrapping key.
    purpose: ClassVar[bytes]

    @abstractmethod
    def fetch(self) -> bytes:
        """Return the secret. It is called once, when needed. Raises TdefsError."""

    @abstractmethod
    def wrong_secret(self) -> WrongSecretError:
        """Return the error for an entry of this kind that the secret does not open."""

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See Protector. Raises as :meth:`fetch`."""
        return WrappedProtectorKey({}, wrap_secret(self._wrapping_key(context), protector_key, context))

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See Protector. Raises as :meth:`fetch`, too."""
        if entry.kind != self.kind:
            raise NotMineError
        if entry.params:
            raise damaged(f"protector {entry.id}: expected no parameters")
        try:
            return unwrap_secret(self._wrapping_key(context), entry.wrapped, context)
        except UnwrapFailedError:
            raise self.wrong_secret() from None

    @cached_property
    def _secret(self) -> bytes:
        return self.fetch()

    def _wrapping_key(self, context: WrapContext) -> bytes:
        return hkdf_sha256(self._secret, self.purpose + context.to_bytes(), _WRAPPING_KEY_BYTES)

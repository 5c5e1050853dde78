"""The recovery code protector: a long random code, printed once, that a person keeps and types."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import ProtectorEntry, damaged
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.protectors.base import NotMineError, Protector, WrappedMasterKey, WrongSecretError
from tdefs.keys.recovery_text import CODE_BITS, read_code
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

_PURPOSE = b"tdefs v1 recovery code wrapping key"
_WRAPPING_KEY_BYTES = 32


class RecoveryCodeProtector(Protector):
    """A recovery code. It has 175 random bits, so no key stretching is needed."""

    kind = "recovery-code"
    words = "the recovery code"

    def __init__(self, read: Callable[[], bytes]) -> None:
        """``read`` returns what was typed, in ASCII; it is called once, when needed."""
        self._read = read

    @cached_property
    def _code(self) -> bytes:
        # Decoded so that no UnicodeDecodeError, which would carry what was typed, can come up.
        typed = self._read().decode("ascii", "replace")
        if not typed.strip():
            raise TdefsError(Exit.NO_SECRET, "the recovery code is empty")
        return read_code(typed).to_bytes(-(-CODE_BITS // 8))

    def wrap(self, master_secret: bytes, context: WrapContext) -> WrappedMasterKey:
        """See Protector. Raises TdefsError(RECOVERY_CODE_MISTYPED)."""
        return WrappedMasterKey({}, wrap_secret(self._wrapping_key(context), master_secret, context))

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See Protector. Raises TdefsError(RECOVERY_CODE_MISTYPED)."""
        if entry.kind != self.kind:
            raise NotMineError
        if entry.params:
            raise damaged(f"protector {entry.id}: expected no parameters")
        try:
            return unwrap_secret(self._wrapping_key(context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                "wrong recovery code",
                detail="it is typed as it was printed, but it is not this keystore's, or was changed or removed",
            ) from None

    def _wrapping_key(self, context: WrapContext) -> bytes:
        return hkdf_sha256(self._code, _PURPOSE + context.to_bytes(), _WRAPPING_KEY_BYTES)

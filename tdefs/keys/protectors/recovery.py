"""The recovery code protector: a long random code, printed once, that a person keeps and types."""

from __future__ import annotations

from collections.abc import Callable

from tdefs.errors import Exit, TdefsError
from tdefs.keys.protectors.base import WrongSecretError
from tdefs.keys.protectors.strong_secret import StrongSecretProtector
from tdefs.keys.recovery_text import CODE_BITS, read_code


class RecoveryCodeProtector(StrongSecretProtector):
    """A recovery code: 175 random bits."""

    kind = "recovery-code"
    words = "the recovery code"
    purpose = b"tdefs v1 recovery code wrapping key"

    def __init__(self, read: Callable[[], bytes]) -> None:
        """``read`` returns what was typed, in ASCII; it is called once, when needed."""
        self._read = read

    def fetch(self) -> bytes:
        """Return the code's 22 bytes. Raises TdefsError: RECOVERY_CODE_MISTYPED, NO_SECRET if it is empty."""
        # Decoded so that no UnicodeDecodeError, which would carry what was typed, can come up.
        typed = self._read().decode("ascii", "replace")
        if not typed.strip():
            raise TdefsError(Exit.NO_SECRET, "the recovery code is empty")
        return read_code(typed).to_bytes(-(-CODE_BITS // 8))

    def wrong_secret(self) -> WrongSecretError:
        """See StrongSecretProtector."""
        return WrongSecretError(
            "wrong recovery code",
            detail="it is typed as it was printed, but it is not this keystore's, or was changed or removed",
        )

"""What a token answers, told as tdefs tells of key sources. Only the names of errors are passed on."""

from __future__ import annotations

import pkcs11
from pkcs11.constants import TokenFlag

from tdefs.errors import Exit, TdefsError
from tdefs.keys.attempts import UnreachableError
from tdefs.keys.protectors.base import WrongSecretError

_PIN = {
    pkcs11.PinIncorrect: "the PIN of {token} is wrong",
    pkcs11.PinLocked: "the PIN of {token} is locked",
    pkcs11.PinExpired: "the PIN of {token} has expired",
    pkcs11.PinLenRange: "the PIN of {token} is wrong: it has not the length of a PIN",
    pkcs11.PinInvalid: "the PIN of {token} is wrong: it has characters that a PIN cannot have",
    pkcs11.UserPinNotInitialized: "{token} has no PIN yet",
}
_GONE = (
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.SlotIDInvalid,
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
)
# Tokens have no common answer to a ciphertext or its context that is not theirs; SoftHSM's is GeneralError.
_NOT_THIS_CIPHERTEXT = (
    pkcs11.EncryptedDataInvalid,
    pkcs11.EncryptedDataLenRange,
    pkcs11.DataInvalid,
    pkcs11.DataLenRange,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
)


def of_error(error: pkcs11.PKCS11Error, token: str, operation: str) -> TdefsError:
    """Return what to raise for an error of an ``operation``, of which the first is the login; none is tried again.

    A card counts wrong PINs, and locks after three or so.
    """
    name = type(error).__name__
    detail = f"the token answered {name}"
    for kind, message in _PIN.items():
        if isinstance(error, kind):
            return refused(
                message.format(token=token), detail, "each wrong PIN brings the token nearer to locking"
            )
    if isinstance(error, _GONE):
        return TdefsError(
            Exit.KEY_SERVER_UNREACHABLE, f"{token} was lost", detail=detail, hint="is it plugged in?"
        )
    if operation == "decrypt" and isinstance(error, _NOT_THIS_CIPHERTEXT):
        return WrongSecretError(
            f"the key in {token} did not encrypt this protector", detail=detail, hint="is it the right token?"
        )
    if isinstance(error, pkcs11.MechanismInvalid):
        return unusable(f"the key in {token} cannot be used with this mechanism", detail)
    return refused(f"{token} refused to {operation}", detail)


def refusal_before_login(flags: TokenFlag, token: str, *, typed: bool) -> TdefsError | None:
    """Return why a PIN must not even be tried; ``typed`` tells that a person has entered it."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        return refused(f"the PIN of {token} is locked", "too many wrong ones were tried", "unlock it with its PUK")
    if flags & TokenFlag.USER_PIN_FINAL_TRY and not typed:
        return refused(
            f"the last try of the PIN of {token} is left to a person",
            "one more wrong PIN locks it, and what pin_file holds may be wrong",
            "log in once with the token's own tool, or unlock without pin_file",
        )
    return None


def refused(message: str, detail: str = "", hint: str = "") -> TdefsError:
    """Return the error for a token that does not accept who asks, or what is asked."""
    return TdefsError(Exit.KEY_SERVER_REFUSED, message, detail=detail, hint=hint)


def unusable(message: str, detail: str = "", hint: str = "") -> TdefsError:
    """Return the error for a wrapping key that is not there or does not serve."""
    return TdefsError(Exit.WRAPPING_KEY_UNUSABLE, message, detail=detail, hint=hint)


def unavailable(message: str, detail: str = "", hint: str = "") -> TdefsError:
    """Return the error for what is lacking on this host."""
    return TdefsError(Exit.KEY_SOURCE_UNAVAILABLE, message, detail=detail, hint=hint)


def absent(message: str, detail: str = "") -> TdefsError:
    """Return the error for a token that may yet be plugged in, or come back: nothing was tried with its PIN."""
    return UnreachableError(message, detail=detail)

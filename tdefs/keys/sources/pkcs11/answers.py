"""The errors of a token, as errors of a key source. Only the names of the token's errors are shown."""

from __future__ import annotations

import pkcs11
from pkcs11.constants import TokenFlag

from tdefs.errors import TdefsError
from tdefs.keys.failures import LostError, RefusedError, UnusableError
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
# Tokens have no common answer to a ciphertext, or a context, that is not theirs; that of SoftHSM is GeneralError.
_NOT_THIS_CIPHERTEXT = (
    pkcs11.EncryptedDataInvalid,
    pkcs11.EncryptedDataLenRange,
    pkcs11.DataInvalid,
    pkcs11.DataLenRange,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
)


def of_error(error: pkcs11.PKCS11Error, token: str, operation: str) -> TdefsError:
    """Return the error for one of an ``operation``, or of the login before it. None of them is tried again.

    A card counts wrong PINs, and locks after three or so.
    """
    name = type(error).__name__
    detail = f"the token answered {name}"
    for kind, message in _PIN.items():
        if isinstance(error, kind):
            return RefusedError(
                message.format(token=token), detail, "each wrong PIN brings the token nearer to locking"
            )
    if isinstance(error, _GONE):
        return LostError(f"{token} was lost", detail, "is it plugged in?")
    if operation == "decrypt" and isinstance(error, _NOT_THIS_CIPHERTEXT):
        return WrongSecretError(
            f"the key in {token} did not encrypt this protector", detail=detail, hint="is it the right token?"
        )
    if isinstance(error, pkcs11.MechanismInvalid):
        return UnusableError(f"the key in {token} cannot be used with this mechanism", detail)
    return RefusedError(f"{token} refused to {operation}", detail)


def refusal_before_login(flags: TokenFlag, token: str, *, typed: bool) -> TdefsError | None:
    """Return why a PIN must not even be tried; ``typed`` means that a person has entered it."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        return RefusedError(
            f"the PIN of {token} is locked", "too many wrong PINs were tried", "unlock it with its PUK"
        )
    if flags & TokenFlag.USER_PIN_FINAL_TRY and not typed:
        return RefusedError(
            f"the last try of the PIN of {token} is left to a person",
            "one more wrong PIN locks it, and the PIN in pin_file may be wrong",
            "log in once with the token's own tool, or unlock without pin_file",
        )
    return None

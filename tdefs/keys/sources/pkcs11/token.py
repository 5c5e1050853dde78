"""The process with the token's module: one request from stdin, one answer to stdout, and it ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11.constants import Attribute, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.mechanisms import MGF, GCMParams, KeyType, Mechanism
from pkcs11.types import DecryptMixin, EncryptMixin, Key, Session, Token

from tdefs.errors import NoSecretError, TdefsError
from tdefs.host import harden_process, lock_memory, refuse_tracer
from tdefs.keys.failures import LostError, RefusedError, UnavailableError, UnreachableError, UnusableError
from tdefs.keys.private_files import read_file
from tdefs.keys.protectors.base import WrongSecretError
from tdefs.keys.sources.pkcs11.request import AES_GCM, DECRYPT, LOGIN, LOOK, PUBLIC_KEY, Request, dump_error
from tdefs.keys.wrapping import NONCE_BYTES
from tdefs.trust import check_trusted

_KEY_BITS = 256
_MECHANISMS = {AES_GCM: Mechanism.AES_GCM}
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


def main() -> None:
    """Answer one request."""
    harden_process()
    answers = os.dup(1)
    os.dup2(2, 1)  # modules print
    try:
        refuse_tracer()  # before there is a PIN in this process
        lock_memory()
        said = answer(Request(**json.load(sys.stdin)))
    except TdefsError as error:
        said = {"error": dump_error(error)}
    with os.fdopen(answers, "w") as pipe:
        json.dump(said, pipe)


def answer(request: Request) -> dict[str, Any]:
    """Return the answer to a request.

    :raises UnreachableError: only before the PIN is tried.
    :raises TdefsError: another attempt would fail, too.
    """
    with _module(request.module) as module:
        token = _find(module, request)
        found = {"token_label": token.label, "token_serial": token.serial.decode("ascii", "replace")}
        if request.operation == LOOK:
            return found
        name = f'token "{token.label}"'
        _check_mechanism(token, name, request.mechanism)
        refusal = refusal_before_login(token.flags, name, typed=not request.pin_file)
        if refusal is not None:
            raise refusal
        pin = request.pin or _read_pin(Path(request.pin_file))
        stage = LOGIN
        try:
            with token.open(rw=request.create, user_pin=pin) as session:
                stage = request.operation
                return found | _operate(session, name, request)
        except pkcs11.PKCS11Error as error:
            failure = of_error(error, name, stage)
        raise failure


@contextmanager
def _module(path: str) -> Iterator[Any]:
    """Load and initialise the module; finalise it at the end, which closes its connections."""
    # this process runs its code
    check_trusted(Path(path), "PKCS #11 module")
    try:
        module = pkcs11.lib(path)
    except pkcs11.PKCS11Error as error:
        # The binding has no class of its own for an error of the dynamic linker.
        if type(error) is pkcs11.PKCS11Error:
            hint = "see module in the key source: it is the path of a library from the maker of the token"
            raise UnavailableError(f'the PKCS#11 module "{path}" cannot be loaded', str(error), hint) from None
        raise UnreachableError(
            f'the PKCS#11 module "{path}" does not start', f"it answered {type(error).__name__}"
        ) from None
    try:
        yield module
    finally:
        with suppress(pkcs11.PKCS11Error):
            module.finalize()


def _find(module: Any, request: Request) -> Token:
    try:
        tokens: list[Token] = [
            token
            for token in module.get_tokens()
            if request.token_label in ("", token.label)
            and request.serial in ("", token.serial.decode("ascii", "replace").strip())
        ]
    except pkcs11.PKCS11Error as error:
        raise UnreachableError(
            "the tokens cannot be listed", f"the module answered {type(error).__name__}"
        ) from None
    wanted = f'"{request.token_label}"' if request.token_label else f"with the serial number {request.serial}"
    if not tokens:
        raise UnreachableError(f"there is no token {wanted}", "it is not plugged in, or not reachable")
    if len(tokens) > 1:
        raise UnavailableError(
            f"there are {len(tokens)} tokens {wanted}", hint="choose one by token_label and serial"
        )
    return tokens[0]


def _check_mechanism(token: Token, name: str, mechanism: str) -> None:
    if _MECHANISMS.get(mechanism, Mechanism.RSA_PKCS_OAEP) not in token.slot.get_mechanisms():
        hint = "smart cards have mechanism: rsa-oaep" if mechanism == AES_GCM else ""
        raise UnusableError(f"{name} does not have the mechanism {mechanism}", hint=hint)


def _read_pin(path: Path) -> str:
    pin = read_file(path, "PIN", secret=True).removesuffix(b"\n").decode("utf-8", "replace")
    if not pin:
        raise NoSecretError(f'the PIN file "{path}" is empty')
    return pin


def _operate(session: Session, name: str, request: Request) -> dict[str, Any]:
    """Return the result of the operation; for an encryption also whether the key was ``made`` for it."""
    data, aad = bytes.fromhex(request.data), bytes.fromhex(request.aad)
    if request.mechanism == AES_GCM:
        key, made = _key(session, name, request, ObjectClass.SECRET_KEY, KeyType.AES)
        if request.operation == DECRYPT:
            parameters = GCMParams(data[:NONCE_BYTES], aad)
            return {"data": _decrypt(key, name, data[NONCE_BYTES:], Mechanism.AES_GCM, parameters).hex()}
        _check_stays(key, name)
        nonce = os.urandom(NONCE_BYTES)
        encrypted = _encrypt(key, name, data, Mechanism.AES_GCM, GCMParams(nonce, aad))
        return {"data": (nonce + encrypted).hex(), "made": made}
    key, _ = _key(session, name, request, ObjectClass.PRIVATE_KEY, KeyType.RSA)
    if request.operation == PUBLIC_KEY:
        _check_stays(key, name)
        return {"modulus": key[Attribute.MODULUS].hex(), "exponent": key[Attribute.PUBLIC_EXPONENT].hex()}
    oaep = (Mechanism.SHA_1, MGF.SHA1, None)
    return {"data": _decrypt(key, name, data, Mechanism.RSA_PKCS_OAEP, oaep).hex()}


def _encrypt(key: Key, name: str, data: bytes, mechanism: Mechanism, parameters: Any) -> bytes:
    if not isinstance(key, EncryptMixin):
        raise UnusableError(f'the key "{key.label}" in {name} may not encrypt')
    done = key.encrypt(data, mechanism=mechanism, mechanism_param=parameters)
    return done if isinstance(done, bytes) else b"".join(done)


def _decrypt(key: Key, name: str, data: bytes, mechanism: Mechanism, parameters: Any) -> bytes:
    if not isinstance(key, DecryptMixin):
        raise UnusableError(f'the key "{key.label}" in {name} may not decrypt')
    done = key.decrypt(data, mechanism=mechanism, mechanism_param=parameters)
    return done if isinstance(done, bytes) else b"".join(done)


def _key(session: Session, name: str, request: Request, kind: ObjectClass, key_type: KeyType) -> tuple[Key, bool]:
    """Return the key of the label, and whether it was made now because the request asks for that."""
    label = request.key_label
    try:
        return session.get_key(object_class=kind, key_type=key_type, label=label), False
    except pkcs11.MultipleObjectsReturned:
        raise UnusableError(f'there are several {key_type.name} keys "{label}" in {name}') from None
    except pkcs11.NoSuchKey:
        if not request.create:
            raise UnusableError(
                f'there is no {key_type.name} key "{label}" in {name}', hint=_way_out(request.operation, kind)
            ) from None
    made = session.generate_key(
        KeyType.AES,
        _KEY_BITS,
        label=label,
        store=True,
        capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
        template={
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.MODIFIABLE: False,
        },
    )
    return made, True


def _way_out(operation: str, kind: ObjectClass) -> str:
    """Return the hint for a key that is not there. A new one would not open what the lost one has wrapped."""
    if operation == DECRYPT:
        return "restore it from the token's backup, or unlock with another protector"
    if kind is ObjectClass.SECRET_KEY:
        return "create: yes in the key source makes it with the next new protector"
    return ""


def _check_stays(key: Key, name: str) -> None:
    """Raise UnusableError for a key that the token would give away: then the token protects nothing."""
    for attribute, wanted in ((Attribute.SENSITIVE, True), (Attribute.EXTRACTABLE, False)):
        try:
            found = key[attribute]
        except pkcs11.AttributeTypeInvalid:  # a card that can never give a key away
            continue
        if found is not wanted:
            raise UnusableError(
                f'the key "{key.label}" can leave {name}',
                f"its attribute {attribute.name} is {found}",
                "have the token make a key that is sensitive and not extractable",
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


if __name__ == "__main__":
    main()

"""The key source ``pkcs11``: a token, asked by a process of its own, encrypts and decrypts the wrapping key."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import pkcs11  # noqa: F401 - if it is missing, that is reported before a process that needs it is started
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tdefs.errors import NoSecretError
from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import LostError, RefusedError, UnavailableError, UnusableError
from tdefs.keys.protectors.base import (
    WRAPPING_KEY_BYTES,
    Made,
    NotMineError,
    Obtained,
    Parameters,
    WrongSecretError,
)
from tdefs.keys.sources.asking import Patient, Service, TimeLimits
from tdefs.keys.sources.base import KeySource
from tdefs.keys.sources.pkcs11.request import (
    AES_GCM,
    DECRYPT,
    ENCRYPT,
    LOOK,
    PUBLIC_KEY,
    RSA_OAEP,
    Request,
    load_error,
)
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.wrapping import WrapContext
from tdefs.text import masked

Result = TypeVar("Result")
#: Has the token do one thing, and returns its answer.
Ask = Callable[[Request], dict[str, Any]]
_LEAST_RSA_BITS = 2048
_MAX_LABEL_CHARACTERS = 255
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{0,255}")
_CIPHERTEXT = re.compile(r"[A-Za-z0-9+/]{4,4092}={0,2}", re.ASCII)
_NO_PIN_HINT = "set pin_file in the key source, or unlock with another protector"


@dataclass(frozen=True)
class TokenService(Service[Ask]):
    """A token, asked by processes that live for one operation."""

    name: str
    timeout_seconds: int

    @property
    def title(self) -> str:
        return f'the token "{self.name}"'

    def once(self, call: Callable[[Ask], Result], purpose: str, until: float) -> Result:
        return call(lambda request: ask(request, self.timeout_seconds))


def ask(request: Request, timeout_seconds: float) -> dict[str, Any]:
    """Return the answer to ``request``.

    :raises UnreachableError: nothing was tried with the PIN.
    :raises TdefsError: the process raised it.
    :raises LostError: the module does not answer in time. It may have been about to refuse the PIN, so it is not
        asked again.
    """
    # -I: nothing is imported from the current directory, nor from PYTHONPATH
    command = [sys.executable, "-I", "-m", "tdefs.keys.sources.pkcs11.token"]
    try:
        done = subprocess.run(
            command,
            input=request.dump(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a module may print anything
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    # Outside of the handler: its exception contains what was sent, and what was read so far.
    if done is None:
        raise LostError(
            f"the PKCS#11 module did not answer within {timeout_seconds:g} s",
            f'"{request.module}" was ended while it was to {request.operation}',
            "is the token reachable? timeout_seconds gives it more time",
        )
    if done.returncode < 0:
        number = -done.returncode
        reason = signal.strsignal(number) or f"signal {number}"
        raise UnavailableError(f'the PKCS#11 module "{request.module}" crashed', reason)
    said = _read(done.stdout)
    if said is None:
        raise UnavailableError(f'the process with the PKCS#11 module "{request.module}" failed')
    if "error" in said:
        raise load_error(said["error"])
    return said


def _read(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


class Pkcs11(KeySource):
    """A key in a token; it stays there."""

    kind = "pkcs11"
    purpose = b"tdefs v1 pkcs11 wrapping key"
    members = ("token_label", "token_serial", "key_label", "mechanism", "ciphertext")

    def __init__(self, request: Request, limits: TimeLimits, dialogue: Dialogue) -> None:
        """``request`` names the token and the key; its operation and data are replaced in each use."""
        super().__init__()
        self._request = request
        self._dialogue = dialogue
        token = TokenService(request.token_label or request.serial, limits.timeout_seconds)
        self._patient: Patient[Ask] = Patient(token, limits, dialogue.note)
        self._refusal: RefusedError | None = None

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        pin_file = read.optional_path("pin_file")
        request = Request(
            operation=LOOK,
            module=str(read.path("module")),
            token_label=read.text("token_label", ""),
            serial=read.text("serial", ""),
            key_label=read.text("key_label"),
            mechanism=read.choice("mechanism", (AES_GCM, RSA_OAEP), AES_GCM),
            create=read.choice("create", ("yes", "no"), "no") == "yes",
            pin_file=str(pin_file) if pin_file else "",
        )
        limits = TimeLimits.read(read)
        read.finish()
        if not (request.token_label or request.serial):
            raise read.wrong("kind", "token_label or serial must say which token it is")
        if not _PRINTABLE.fullmatch(request.key_label):
            raise read.wrong("key_label", "key_label must be a printable text of at most 255 characters")
        if request.create and request.mechanism != AES_GCM:
            raise read.wrong("create", "create is for aes-gcm; make an RSA key with the tool of the token's maker")
        return cls(request, limits, dialogue)

    @property
    def needs_person(self) -> bool:
        """See KeySource: without a PIN file, a person is asked for the PIN."""
        return not self._request.pin_file

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector. The secret is random; the token, or its public key, encrypts it."""
        secret = os.urandom(WRAPPING_KEY_BYTES)
        made = None
        if self._request.mechanism == AES_GCM:
            said = self._ask(ENCRYPT, secret, context, create=self._request.create)
            ciphertext = bytes.fromhex(said["data"])
            if said["made"]:
                made = self._made_key(_label(said["token_label"]))
        else:
            said = self._ask(PUBLIC_KEY, b"", context)
            ciphertext = _public_key(said).encrypt(secret, _oaep())
        params: dict[str, str | int] = {
            "token_label": _label(said["token_label"]),
            "token_serial": _label(said["token_serial"]),
            "key_label": self._request.key_label,
            "mechanism": self._request.mechanism,
            "ciphertext": base64.b64encode(ciphertext).decode("ascii"),
        }
        return Obtained(secret, params, made)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector. The token is not compared: another token may have got the same key."""
        for name in ("token_label", "token_serial"):
            params.text(name, _PRINTABLE)
        key_label = params.text("key_label", _PRINTABLE)
        mechanism = params.choice("mechanism", (AES_GCM, RSA_OAEP))
        ciphertext = params.base64("ciphertext", _CIPHERTEXT)
        if (key_label, mechanism) != (self._request.key_label, self._request.mechanism):
            raise NotMineError
        return bytes.fromhex(self._ask(DECRYPT, ciphertext, context)["data"])

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(
            f'the key "{self._request.key_label}" of the token does not open protector {params.entry_id}',
            detail="what the token decrypted does not fit what the keystore holds",
        )

    def _made_key(self, token_label: str) -> Made:
        """Return the key as something made. Another host may use it already, so it is never removed by itself."""
        words = (
            *("pkcs11-tool", "--module", self._request.module, "--login"),
            *("--token-label", token_label, "--delete-object"),
            *("--type", "secrkey", "--label", self._request.key_label),
        )
        return Made(
            f'the key "{self._request.key_label}" in token "{token_label}"',
            shlex.join(words),
            kept="the next protector of this key source uses it, and another host may do so already",
        )

    def _ask(self, operation: str, data: bytes, context: WrapContext, *, create: bool = False) -> dict[str, Any]:
        """Have the token do something. It is not asked again after a refusal, since it counts wrong PINs."""
        if self._refusal is not None:
            raise self._refusal
        request = replace(
            self._request,
            operation=operation,
            pin="" if self._request.pin_file else self._pin,
            data=data.hex(),
            aad=context.to_bytes().hex(),
            create=create,
        )
        try:
            return self._patient.ask(lambda ask: ask(request))
        except RefusedError as error:
            self._refusal = error
            raise

    @cached_property
    def _pin(self) -> str:
        """The PIN that a person types. It is asked for once the token is there."""
        look = replace(self._request, operation=LOOK)
        label = _label(self._patient.ask(lambda ask: ask(look))["token_label"])
        try:
            typed = self._dialogue.ask_secret(f"PIN for token {label}", instead=_NO_PIN_HINT)
        except NoSecretError:
            raise NoSecretError(f'no PIN for token "{label}" could be asked for', hint=_NO_PIN_HINT) from None
        pin = typed.decode("utf-8", "replace")
        if not pin:
            raise NoSecretError("the PIN is empty")
        return pin


SOURCE = Pkcs11


def _public_key(said: dict[str, Any]) -> rsa.RSAPublicKey:
    modulus, exponent = (int(said[name], 16) for name in ("modulus", "exponent"))
    if modulus.bit_length() < _LEAST_RSA_BITS:
        raise UnusableError(f"the RSA key in the token has fewer than {_LEAST_RSA_BITS} bits")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise UnusableError("the RSA key in the token is not a valid key") from None


def _oaep() -> padding.OAEP:
    # OAEP does not need a hash without collisions. Few cards decrypt with another one than SHA-1, nor does
    # SoftHSM.
    sha1 = hashes.SHA1()  # noqa: S303
    return padding.OAEP(mgf=padding.MGF1(sha1), algorithm=sha1, label=None)


def _label(text: str) -> str:
    return masked(text[:_MAX_LABEL_CHARACTERS])

"""The key source ``pkcs11``: a token encrypts and decrypts the wrapping key of a protector."""

from __future__ import annotations

import base64
import os
import re
import shlex
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.attempts import PATIENCE_SECONDS, attempt
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.key_source import KeySource
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.protectors.base import Made, NotMineError, WrappedProtectorKey, WrongSecretError
from tdefs.keys.secrets import ask_passphrase
from tdefs.keys.settings import SettingsReader
from tdefs.keys.sources.pkcs11 import process
from tdefs.keys.sources.pkcs11.answers import unusable
from tdefs.keys.sources.pkcs11.request import AES_GCM, DECRYPT, ENCRYPT, LOOK, PUBLIC_KEY, RSA_OAEP, Request
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret
from tdefs.text import masked

_PURPOSE = b"tdefs v1 pkcs11 wrapping key"
_WRAPPING_KEY_BYTES = 32
_TIMEOUT_SECONDS = 10
_LEAST_RSA_BITS = 2048
_MAX_LABEL_CHARACTERS = 255
_PARAMS = ("token_label", "token_serial", "key_label", "mechanism", "ciphertext")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{0,255}")
_CIPHERTEXT = re.compile(r"[A-Za-z0-9+/]{4,4092}={0,2}", re.ASCII)


class Pkcs11(KeySource):
    """A key in a token; it stays there."""

    kind = "pkcs11"

    def __init__(self, request: Request, *, timeout_seconds: int, patience_seconds: int) -> None:
        """``request`` says which token and key; its operation and data are replaced in each use."""
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._refusal: TdefsError | None = None
        self._has_made_key = False

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """See KeySource."""
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
        timeout_seconds = read.number("timeout_seconds", _TIMEOUT_SECONDS, 1, 600)
        patience_seconds = read.number("patience_seconds", PATIENCE_SECONDS, 0, 3600)
        read.finish()
        if not (request.token_label or request.serial):
            raise read.wrong("kind", "token_label or serial must say which token it is")
        if not _PRINTABLE.fullmatch(request.key_label):
            raise read.wrong("key_label", "key_label must be a printable text of at most 255 characters")
        if request.create and request.mechanism != AES_GCM:
            raise read.wrong("create", "create is for aes-gcm; make an RSA key with the tool of the token's maker")
        return cls(request, timeout_seconds=timeout_seconds, patience_seconds=patience_seconds)

    @property
    def needs_person(self) -> bool:
        """See KeySource: without a file of it, the PIN is asked for."""
        return not self._request.pin_file

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See Protector."""
        wrapping_key = os.urandom(_WRAPPING_KEY_BYTES)
        if self._request.mechanism == AES_GCM:
            said = self._ask(ENCRYPT, wrapping_key, context, create=self._request.create)
            self._has_made_key = said["made"]
            ciphertext = bytes.fromhex(said["data"])
        else:
            said = self._ask(PUBLIC_KEY, b"", context)
            public_key = _public_key(said)
            ciphertext = public_key.encrypt(wrapping_key, _oaep())
        return WrappedProtectorKey(
            params={
                "token_label": _label(said["token_label"]),
                "token_serial": _label(said["token_serial"]),
                "key_label": self._request.key_label,
                "mechanism": self._request.mechanism,
                "ciphertext": base64.b64encode(ciphertext).decode("ascii"),
            },
            wrapped=wrap_secret(_derived(wrapping_key, context), protector_key, context),
        )

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See KeySource. The token is not compared: one that took the place of a broken one may have its key."""
        if entry.kind != self.kind:
            raise NotMineError
        key_label, mechanism, ciphertext = _read_params(entry)
        if (key_label, mechanism) != (self._request.key_label, self._request.mechanism):
            raise NotMineError
        wrapping_key = bytes.fromhex(self._ask(DECRYPT, ciphertext, context)["data"])
        try:
            return unwrap_secret(_derived(wrapping_key, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                f'the key "{key_label}" of the token does not open protector {entry.id}',
                detail="what the token decrypted does not fit what the keystore holds",
            ) from None

    def made(self, entry: ProtectorEntry) -> Made | None:
        """See Protector. Another host may use the key already, so it is never removed by itself."""
        if not self._has_made_key:
            return None
        words = (
            *("pkcs11-tool", "--module", self._request.module, "--login"),
            *("--token-label", str(entry.params["token_label"]), "--delete-object"),
            *("--type", "secrkey", "--label", self._request.key_label),
        )
        return Made(
            f'the key "{self._request.key_label}" in token "{entry.params["token_label"]}"',
            shlex.join(words),
            kept="the next protector of this key source uses it, and another host may do so already",
        )

    def _ask(self, operation: str, data: bytes, context: WrapContext, *, create: bool = False) -> dict[str, Any]:
        """Have the token do something. What it has refused once is not asked again: it counts wrong PINs."""
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
            return self._wait(request)
        except TdefsError as error:
            if error.exit_code == Exit.KEY_SERVER_REFUSED:
                self._refusal = error
            raise

    @cached_property
    def _pin(self) -> str:
        """What a person types, once the token is there."""
        label = _label(self._wait(replace(self._request, operation=LOOK))["token_label"])
        try:
            pin = ask_passphrase(confirm=False, name=f"PIN for token {label}").decode("utf-8", "replace")
        except TdefsError as error:
            hint = "set pin_file in the key source, or unlock with another protector"
            raise TdefsError(
                error.exit_code, f'no PIN for token "{label}" could be asked for', hint=hint
            ) from None
        if not pin:
            raise TdefsError(Exit.NO_SECRET, "the PIN is empty")
        return pin

    def _wait(self, request: Request) -> dict[str, Any]:
        return attempt(
            lambda: process.ask(request, self._timeout_seconds),
            f'the token "{request.token_label or request.serial}"',
            patience_seconds=self._patience_seconds,
        )


def _public_key(said: dict[str, Any]) -> rsa.RSAPublicKey:
    modulus, exponent = (int(said[name], 16) for name in ("modulus", "exponent"))
    if modulus.bit_length() < _LEAST_RSA_BITS:
        raise unusable(f"the RSA key in the token has fewer than {_LEAST_RSA_BITS} bits")
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise unusable("the RSA key in the token is none") from None


def _oaep() -> padding.OAEP:
    # OAEP needs no hash without collisions, and with another hash than SHA-1 few cards and not SoftHSM undo it.
    sha1 = hashes.SHA1()  # noqa: S303
    return padding.OAEP(mgf=padding.MGF1(sha1), algorithm=sha1, label=None)


def _read_params(entry: ProtectorEntry) -> tuple[str, str, bytes]:
    """Return key label, mechanism and ciphertext. TdefsError(KEYSTORE_DAMAGED) for what is never written."""
    where = f"protector {entry.id}"
    try:
        members = fields.read_object(dict(entry.params), where, _PARAMS)
        for name in ("token_label", "token_serial", "key_label"):
            fields.read_text(members[name], f"{where}: {name}", _PRINTABLE)
        mechanism = fields.read_choice(members["mechanism"], f"{where}: mechanism", (AES_GCM, RSA_OAEP))
        text = fields.read_text(members["ciphertext"], f"{where}: ciphertext", _CIPHERTEXT)
        return members["key_label"], mechanism, base64.b64decode(text, validate=True)
    except (fields.MalformedError, ValueError) as error:
        reason = str(error) if isinstance(error, fields.MalformedError) else f"{where}: expected base64"
        raise damaged(reason) from None


def _derived(wrapping_key: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(wrapping_key, _PURPOSE + context.to_bytes(), _WRAPPING_KEY_BYTES)


def _label(text: str) -> str:
    return masked(text[:_MAX_LABEL_CHARACTERS])

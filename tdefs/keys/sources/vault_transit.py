"""The kind vault-transit: a key of Vault's or OpenBao's transit engine, which never leaves the server.

The server encrypts 32 random bytes, from which the key is derived that wraps. Where the type of its key has
associated data, those bytes are bound by it to the volume and the protector. What the server has encrypted, with
the version of its key at the front, is kept in the keystore.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import hvac
import hvac.exceptions

from tdefs.errors import TdefsError
from tdefs.keys import fields
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.key_source import Certificate, KeySource
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.protectors.base import NotMineError, WrappedProtectorKey, WrongSecretError
from tdefs.keys.settings import SettingsReader
from tdefs.keys.vault.names import PLACE, read_name, read_path
from tdefs.keys.vault.refusals import unusable
from tdefs.keys.vault.server import VaultServer, not_vault, read_server
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

_PURPOSE = b"tdefs v1 vault transit wrapping key"
_KEY_BYTES = 32
#: The types of transit keys that take associated data.
_AEAD = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]{1,3072}", re.ASCII)
_CONTEXT = re.compile(r"[ -~]{0,512}", re.ASCII)
_PARAMS = ("namespace", "mount", "key_name", "key_version", "ciphertext", "context", "associated_data")


@dataclass(frozen=True)
class _Params:
    """What an entry keeps; ``bound`` tells whether there was associated data."""

    place: tuple[str, str, str]
    version: int
    ciphertext: str
    context: str
    bound: bool


class VaultTransit(KeySource):
    """A key of a transit engine."""

    kind = "vault-transit"

    def __init__(self, read: SettingsReader) -> None:
        """Read the configuration. Raises TdefsError(CONFIG_INVALID)."""
        self._settings = read.settings
        self._server: VaultServer = read_server(read)
        self._mount = read_path(read, "mount", "transit")
        self._key = read_name(read, "key_name")
        self._context = read.text("context", "")
        if not _CONTEXT.fullmatch(self._context):
            raise read.wrong("context", "context must be printable ASCII, of at most 512 characters")
        read.finish()
        self._place = (self._server.namespace, self._mount, self._key)

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """See KeySource."""
        return cls(read)

    def certificates(self) -> Sequence[Certificate]:
        """See KeySource."""
        return self._server.certificates()

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See KeySource. Raises TdefsError(CONFIG_INVALID) for a ``context`` that does not fit the key."""
        secret = os.urandom(_KEY_BYTES)
        params = self._server.ask(lambda client: self._encrypt(client, secret, context), self._rights("encrypt"))
        return WrappedProtectorKey(params, wrap_secret(_wrapping_key(secret, context), protector_key, context))

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See KeySource."""
        if entry.kind != self.kind:
            raise NotMineError
        params = _read_params(entry)
        if params.place != self._place:
            raise NotMineError
        secret = self._server.ask(lambda client: self._decrypt(client, params, context), self._rights("decrypt"))
        try:
            return unwrap_secret(_wrapping_key(secret, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise _wrong_key(self._title) from None

    @property
    def _title(self) -> str:
        return f'the transit key "{self._mount}/{self._key}"'

    def _rights(self, action: str) -> str:
        return f"update on {self._mount}/{action}/{self._key} and read on {self._mount}/keys/{self._key}"

    def _encrypt(self, client: hvac.Client, secret: bytes, context: WrapContext) -> dict[str, str | int]:
        # Looked at first: where a policy allows it, encrypting with a key that is not there would make one.
        key = self._look(client)
        bound = key.get("type") in _AEAD
        self._check_context(key)
        answer = client.secrets.transit.encrypt_data(
            self._key,
            plaintext=_base64(secret),
            context=_base64(self._context.encode()) or None,
            associated_data=_base64(context.to_bytes()) if bound else None,
            mount_point=self._mount,
        )
        ciphertext = self._server.data(answer).get("ciphertext")
        found = _CIPHERTEXT.fullmatch(ciphertext) if isinstance(ciphertext, str) else None
        if found is None:
            raise not_vault(self._server.title)
        values = (*self._place, int(found[1]), found[0], self._context, int(bound))
        return dict(zip(_PARAMS, values, strict=True))

    def _decrypt(self, client: hvac.Client, params: _Params, context: WrapContext) -> bytes:
        try:
            answer = client.secrets.transit.decrypt_data(
                self._key,
                params.ciphertext,
                context=_base64(params.context.encode()) or None,
                associated_data=_base64(context.to_bytes()) if params.bound else None,
                mount_point=self._mount,
            )
        except hvac.exceptions.InvalidRequest:
            answer = None
        if answer is None:
            raise self._why_not(self._look(client), params.version)
        return _secret(self._server, self._server.data(answer).get("plaintext"))

    def _look(self, client: hvac.Client) -> dict[str, Any]:
        """Return what the server says of the key. Raises TdefsError(WRAPPING_KEY_UNUSABLE)."""
        found: dict[str, Any] | None = None
        try:
            found = self._server.data(client.secrets.transit.read_key(self._key, mount_point=self._mount))
        except hvac.exceptions.InvalidPath as error:
            # With words it is the mount or the namespace that is missing.
            if error.errors != []:
                raise
        hint = "restore it from a backup of the server, or unlock with another protector"
        if found is None:
            raise unusable(f"{self._title} does not exist", hint=hint)
        if found.get("soft_deleted") is True:
            raise unusable(f"{self._title} is deleted", "an administrator can still restore it")
        if found.get("supports_encryption") is False:
            raise unusable(
                f"{self._title} is of a type that does not encrypt", hint="use one of type aes256-gcm96"
            )
        return found

    def _why_not(self, key: dict[str, Any], version: int) -> TdefsError:
        """Return the reason why a server that answers does not decrypt."""
        least, latest = key.get("min_decryption_version"), key.get("latest_version")
        if not isinstance(least, int) or not isinstance(latest, int):
            return not_vault(self._server.title)
        if version < least:
            return unusable(
                f"{self._title} opens version {version} no more",
                f"its min_decryption_version is {least}",
                hint="lower it, unlock, change the protector, and raise it again",
            )
        if version > latest:
            return unusable(
                f"{self._title} has no version {version}",
                f"its latest version is {latest}: it was made anew, or restored from an old backup",
            )
        return _wrong_key(self._title)

    def _check_context(self, key: dict[str, Any]) -> None:
        derived = key.get("derived") is True
        if derived and not self._context:
            raise self._settings.error(f"{self._title} is derived and needs a context", field="context")
        if self._context and not derived:
            message = f"{self._title} is not derived, so that a context has no effect"
            raise self._settings.error(message, field="context")


SOURCE = VaultTransit


def _wrong_key(title: str) -> WrongSecretError:
    return WrongSecretError(
        f"{title} does not open this keystore",
        detail="it is another key of the same name, or the keystore's entry was altered",
    )


def _wrapping_key(secret: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(secret, _PURPOSE + context.to_bytes(), _KEY_BYTES)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _secret(server: VaultServer, plaintext: object) -> bytes:
    """Return the 32 bytes that were decrypted; a server that returns anything else is not what it should be."""
    secret = b""
    if isinstance(plaintext, str):
        try:
            secret = base64.b64decode(plaintext, validate=True)
        except ValueError:
            secret = b""
    if len(secret) != _KEY_BYTES:
        raise not_vault(server.title)
    return secret


def _read_params(entry: ProtectorEntry) -> _Params:
    """Return the parameters of an entry. TdefsError(KEYSTORE_DAMAGED) for what this module never writes."""
    where = f"protector {entry.id}"
    try:
        members = fields.read_object(dict(entry.params), where, _PARAMS)
        namespace, mount, key = (
            fields.read_text(members[name], f"{where}: {name}", PLACE)
            for name in ("namespace", "mount", "key_name")
        )
        ciphertext = fields.read_text(members["ciphertext"], f"{where}: ciphertext", _CIPHERTEXT)
        key_context = fields.read_text(members["context"], f"{where}: context", _CONTEXT)
        version = fields.read_int(members["key_version"], f"{where}: key_version", 1, 10**9)
        bound = fields.read_int(members["associated_data"], f"{where}: associated_data", 0, 1)
    except fields.MalformedError as error:
        raise damaged(str(error)) from None
    if not ciphertext.startswith(f"vault:v{version}:"):
        raise damaged(f"{where}: the key's version is not that of the ciphertext")
    return _Params((namespace, mount, key), version, ciphertext, key_context, bool(bound))

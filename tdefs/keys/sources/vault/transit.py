"""The kind vault-transit: a key of Vault's or OpenBao's transit engine, which never leaves the server.

The server encrypts 32 random bytes. The wrapping key is derived from them. If the type of the server's key allows
associated data, the volume and the protector are bound to those bytes by it. The keystore has the ciphertext,
which begins with the version of the server's key.
"""

from __future__ import annotations

import base64
import os
import re
from typing import Any

import hvac
import hvac.exceptions

from tdefs.errors import TdefsError
from tdefs.keys.failures import UnusableError
from tdefs.keys.protectors.base import WRAPPING_KEY_BYTES, Obtained, Parameters
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.vault.fields import read_name
from tdefs.keys.sources.vault.server import VaultServer, VaultSource, not_vault
from tdefs.keys.wrapping import WrapContext

#: The types of transit keys that allow associated data.
_AEAD = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]{1,3072}", re.ASCII)
_CONTEXT = re.compile(r"[ -~]{0,512}", re.ASCII)


class VaultTransit(VaultSource):
    """A key of a transit engine."""

    kind = "vault-transit"
    purpose = b"tdefs v1 vault transit wrapping key"
    members = ("namespace", "mount", "key_name", "key_version", "ciphertext", "context", "associated_data")
    default_mount = "transit"
    name_member = "key_name"
    wrong_key_detail = "it is another key of the same name, or the keystore's entry was altered"

    def read_name(self, read: SettingsReader) -> str:
        """See VaultSource. Reads the key's ``context``, too."""
        self._settings = read.settings
        self._context = read.text("context", "")
        if not _CONTEXT.fullmatch(self._context):
            raise read.wrong("context", "context must be printable ASCII, of at most 512 characters")
        return read_name(read, "key_name")

    @property
    def title(self) -> str:
        return f'the transit key "{self._mount}/{self._name}"'

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector.

        :raises TdefsError: CONFIG_INVALID for a ``context`` that does not fit the key.
        """
        secret = os.urandom(WRAPPING_KEY_BYTES)
        params = self._patient.ask(lambda client: self._encrypt(client, secret, context), self._rights("encrypt"))
        return Obtained(secret, params)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        ciphertext = params.text("ciphertext", _CIPHERTEXT)
        key_context = params.text("context", _CONTEXT)
        version = params.integer("key_version", 1, 10**9)
        bound = bool(params.integer("associated_data", 0, 1))
        if not ciphertext.startswith(f"vault:v{version}:"):
            raise params.malformed("key_version", "it is not the version in the ciphertext")
        self._check_place(params)

        def decrypt(client: hvac.Client) -> bytes:
            try:
                answer = client.secrets.transit.decrypt_data(
                    self._name,
                    ciphertext,
                    context=_base64(key_context.encode()) or None,
                    associated_data=_base64(context.to_bytes()) if bound else None,
                    mount_point=self._mount,
                )
            except hvac.exceptions.InvalidRequest:
                answer = None
            if answer is None:
                raise self._why_not(self._look(client), version, params)
            return _secret(self._server, self._server.data(answer).get("plaintext"))

        return self._patient.ask(decrypt, self._rights("decrypt"))

    def _rights(self, action: str) -> str:
        return f"update on {self._mount}/{action}/{self._name} and read on {self._mount}/keys/{self._name}"

    def _encrypt(self, client: hvac.Client, secret: bytes, context: WrapContext) -> dict[str, str | int]:
        # First look whether it is there: if a policy allows it, encrypting with a missing key would make one.
        key = self._look(client)
        bound = key.get("type") in _AEAD
        self._check_context(key)
        answer = client.secrets.transit.encrypt_data(
            self._name,
            plaintext=_base64(secret),
            context=_base64(self._context.encode()) or None,
            associated_data=_base64(context.to_bytes()) if bound else None,
            mount_point=self._mount,
        )
        ciphertext = self._server.data(answer).get("ciphertext")
        found = _CIPHERTEXT.fullmatch(ciphertext) if isinstance(ciphertext, str) else None
        if found is None:
            raise not_vault(self._server.title)
        values = (*self._place().values(), int(found[1]), found[0], self._context, int(bound))
        return dict(zip(self.members, values, strict=True))

    def _look(self, client: hvac.Client) -> dict[str, Any]:
        """Return what the server says about the key.

        :raises UnusableError: it cannot be used at all.
        """
        found: dict[str, Any] | None = None
        try:
            found = self._server.data(client.secrets.transit.read_key(self._name, mount_point=self._mount))
        except hvac.exceptions.InvalidPath as error:
            # With words it is the mount or the namespace that is missing.
            if error.errors != []:
                raise
        if found is None:
            hint = "restore it from a backup of the server, or unlock with another protector"
            raise UnusableError(f"{self.title} does not exist", hint=hint)
        if found.get("soft_deleted") is True:
            raise UnusableError(f"{self.title} is deleted", "an administrator can still restore it")
        if found.get("supports_encryption") is False:
            hint = "use one of type aes256-gcm96"
            raise UnusableError(f"{self.title} is of a type that does not encrypt", hint=hint)
        return found

    def _why_not(self, key: dict[str, Any], version: int, params: Parameters) -> TdefsError:
        """Return the reason why a server that answers does not decrypt."""
        least, latest = key.get("min_decryption_version"), key.get("latest_version")
        if not isinstance(least, int) or not isinstance(latest, int):
            return not_vault(self._server.title)
        if version < least:
            return UnusableError(
                f"{self.title} does not open version {version} any more",
                f"its min_decryption_version is {least}",
                "lower it, unlock, change the protector, and raise it again",
            )
        if version > latest:
            return UnusableError(
                f"{self.title} has no version {version}",
                f"its latest version is {latest}: it was made anew, or restored from an old backup",
            )
        return self.wrong_secret(params)

    def _check_context(self, key: dict[str, Any]) -> None:
        derived = key.get("derived") is True
        if derived and not self._context:
            raise self._settings.error(f"{self.title} is derived and needs a context", field="context")
        if self._context and not derived:
            message = f"{self.title} is not derived, so that a context has no effect"
            raise self._settings.error(message, field="context")


SOURCE = VaultTransit


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _secret(server: VaultServer, plaintext: object) -> bytes:
    """Return the 32 bytes that were decrypted. A server that returns anything else is not Vault."""
    secret = b""
    if isinstance(plaintext, str):
        try:
            secret = base64.b64decode(plaintext, validate=True)
        except ValueError:
            secret = b""
    if len(secret) != WRAPPING_KEY_BYTES:
        raise not_vault(server.title)
    return secret

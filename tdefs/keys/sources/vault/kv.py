"""The kind vault-kv: a wrapping key of 32 random bytes that Vault's or OpenBao's KV engine, version 2, keeps.

The key is the base64 text in the field ``key`` at a path. If there is none, wrap() makes it, with check-and-set:
if two hosts do so at the same time, one of them makes the key and both use it. Nothing is ever overwritten. Many
volumes may share a path: each entry has a wrapping key of its own, derived from it. An entry says which version
of the key it was wrapped with.
"""

from __future__ import annotations

import base64
import os
import shlex
from typing import Any

import hvac
import hvac.exceptions

from tdefs.keys.failures import UnusableError
from tdefs.keys.protectors.base import WRAPPING_KEY_BYTES, Made, Obtained, Parameters
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.vault.fields import read_path
from tdefs.keys.sources.vault.server import VaultSource, not_vault
from tdefs.keys.wrapping import WrapContext

_FIELD = "key"
_DELETED, _DESTROYED = "deleted", "destroyed"
_WAY_BACK = {
    _DELETED: "the entry opens again once 'vault kv undelete' has restored the version",
    _DESTROYED: "the server cannot restore a destroyed version: only a backup of the server can have it",
}
_WAY_OUT = "unlock with another protector; a new one can be made once there is a new version"


class VaultKV(VaultSource):
    """A wrapping key at a path of a KV engine."""

    kind = "vault-kv"
    purpose = b"tdefs v1 vault kv wrapping key"
    members = ("namespace", "mount", "path", "key_version")
    default_mount = "secret"
    name_member = "path"
    wrong_key_detail = "it is another key at the same path, or the keystore's entry was altered"

    #: The key, once this object has made it on the server. An attempt may make it and fail afterwards.
    _new: Made | None = None

    def read_name(self, read: SettingsReader) -> str:
        return read_path(read, "path")

    @property
    def title(self) -> str:
        return f'the wrapping key at "{self._mount}/{self._name}"'

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector. It is the latest version of the key."""
        return self._patient.ask(self._latest, f"create and read on {self._mount}/data/{self._name}")

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        version = params.integer("key_version", 1, 10**9)
        self._check_place(params)
        rights = f"read on {self._mount}/data/{self._name}"
        return self._patient.ask(lambda client: self._version(client, version), rights)

    def _latest(self, client: hvac.Client) -> Obtained:
        """Return the latest version of the key, made if there is none."""
        found = self._read(client, None) or self._make(client)
        metadata = found.get("metadata")
        version = metadata.get("version") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(version, int):
            raise not_vault(self._server.title)
        if metadata.get("deletion_time"):
            raise UnusableError(
                f"{self.title} will be deleted",
                "the path or its mount has delete_version_after, and what the key wraps would be lost",
                "set delete_version_after to 0s and write a new version",
            )
        return Obtained(self._key(found, version), {**self._place(), "key_version": version}, self._new)

    def _make(self, client: hvac.Client) -> dict[str, Any]:
        """Make the key, unless another host is faster; return what the server has."""
        new = {_FIELD: base64.b64encode(os.urandom(WRAPPING_KEY_BYTES)).decode("ascii")}
        refused: hvac.exceptions.VaultError | None = None
        try:
            # Check-and-set 0: only if there is no version yet.
            client.secrets.kv.v2.create_or_update_secret(self._name, new, cas=0, mount_point=self._mount)
        except (hvac.exceptions.InvalidRequest, hvac.exceptions.Forbidden) as error:
            # If another host was faster, its key counts. Writing at its path is "update", which may be forbidden.
            refused = error
        else:
            self._new = self._what_was_made()
        found = self._read(client, None)
        if found is not None:
            return found
        if refused is not None:
            raise refused
        raise UnusableError(f"{self.title} cannot be made", "the server does not show it after it was written")

    def _what_was_made(self) -> Made:
        """Return the key as something made. Another host may use it already, so it is never removed by itself."""
        namespace = f" -namespace={shlex.quote(self._server.namespace)}" if self._server.namespace else ""
        place = f"-mount={shlex.quote(self._mount)} {shlex.quote(self._name)}"
        return Made(
            self.title,
            f"vault kv metadata delete{namespace} {place}",
            kept="the next protector of this key source uses it, and another host may do so already",
        )

    def _version(self, client: hvac.Client, version: int) -> bytes:
        found = self._read(client, version)
        if found is None:
            raise UnusableError(
                f"{self.title} has no version {version}",
                "the path was removed, or its max_versions has dropped the version",
                "restore it from a backup of the server, or unlock with another protector",
            )
        return self._key(found, version)

    def _read(self, client: hvac.Client, version: int | None) -> dict[str, Any] | None:
        """Return a version or the latest, and None if there is none.

        :raises UnusableError: the version is deleted or destroyed.
        """
        try:
            answer = client.secrets.kv.v2.read_secret_version(
                self._name, version, mount_point=self._mount, raise_on_deleted_version=True
            )
            return self._server.data(answer)
        except hvac.exceptions.InvalidPath as error:
            gone = _gone(error)
            if gone is None and error.errors != []:
                # With words it is the mount or the namespace that is missing.
                raise
        # Raised outside of the handler: the exception of the library may carry an answer.
        if gone is not None:
            raise UnusableError(f"{self.title} is {gone}", _WAY_BACK[gone], _WAY_OUT)
        return None

    def _key(self, found: dict[str, Any], version: int) -> bytes:
        data = found.get("data")
        if not isinstance(data, dict):
            raise not_vault(self._server.title)
        text, key = data.get(_FIELD), b""
        try:
            # A person may have put it there, with a newline at its end.
            key = base64.b64decode(text.strip(), validate=True) if isinstance(text, str) else b""
        except ValueError:
            key = b""
        if len(key) != WRAPPING_KEY_BYTES:
            raise UnusableError(
                f"{self.title} is not one",
                f'version {version} has no field "{_FIELD}" of {WRAPPING_KEY_BYTES} bytes in base64',
                "name a path that holds nothing else",
            )
        return key


SOURCE = VaultKV


def _gone(error: hvac.exceptions.InvalidPath) -> str | None:
    """Return in a word what became of a version that was there once; None if it never was."""
    answer = error.json if isinstance(error.json, dict) else {}
    data = answer.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return None
    return _DESTROYED if metadata.get("destroyed") is True else _DELETED

"""The kind vault-kv: a wrapping key of 32 random bytes that Vault's or OpenBao's KV engine, version 2, keeps.

The key is the base64 text in the field ``key`` at a path. If nothing is there, wrap() makes it, with
check-and-set: of two hosts which do so at the same time one makes it and both use it, and nothing is ever
overwritten. Many volumes may share a path: each entry has a key of its own, derived from it. An entry says which
version it was wrapped with.
"""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Sequence
from typing import Any, Self

import hvac
import hvac.exceptions

from tdefs.errors import TdefsError
from tdefs.keys import fields
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.key_source import Certificate, KeySource
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.protectors.base import Made, NotMineError, WrappedProtectorKey, WrongSecretError
from tdefs.keys.settings import SettingsReader
from tdefs.keys.vault.names import PLACE, read_path
from tdefs.keys.vault.refusals import unusable
from tdefs.keys.vault.server import VaultServer, not_vault, read_server
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

_PURPOSE = b"tdefs v1 vault kv wrapping key"
_KEY_BYTES = 32
_FIELD = "key"
_DELETED, _DESTROYED = "deleted", "destroyed"
_WAY_BACK = {
    _DELETED: "what it wraps opens again once 'vault kv undelete' has restored the version",
    _DESTROYED: "the server cannot restore a destroyed version: only a backup of the server can have it",
}
_WAY_OUT = "unlock with another protector; a new one can be made once there is a new version"
_PARAMS = ("namespace", "mount", "path", "key_version")


class VaultKV(KeySource):
    """A wrapping key at a path of a KV engine."""

    kind = "vault-kv"

    def __init__(self, read: SettingsReader) -> None:
        """Read the configuration. Raises TdefsError(CONFIG_INVALID)."""
        self._server: VaultServer = read_server(read)
        self._mount = read_path(read, "mount", "secret")
        self._path = read_path(read, "path")
        read.finish()
        self._place = (self._server.namespace, self._mount, self._path)
        self._has_made_it = False

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """See KeySource."""
        return cls(read)

    def certificates(self) -> Sequence[Certificate]:
        """See KeySource."""
        return self._server.certificates()

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See KeySource. Wraps with the path's latest version."""
        rights = f"create and read on {self._mount}/data/{self._path}"
        kept, version = self._server.ask(self._latest, rights)
        params: dict[str, str | int] = dict(zip(_PARAMS, (*self._place, version), strict=True))
        return WrappedProtectorKey(params, wrap_secret(_wrapping_key(kept, context), protector_key, context))

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See KeySource."""
        if entry.kind != self.kind:
            raise NotMineError
        place, version = _read_params(entry)
        if place != self._place:
            raise NotMineError
        rights = f"read on {self._mount}/data/{self._path}"
        kept = self._server.ask(lambda client: self._version(client, version), rights)
        try:
            return unwrap_secret(_wrapping_key(kept, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                f"{self._title} does not open this keystore",
                detail="it is another key at the same path, or the keystore's entry was altered",
            ) from None

    def made(self, entry: ProtectorEntry) -> Made | None:
        """See Protector. Another host may use the key already, so it is never removed by itself."""
        del entry
        if not self._has_made_it:
            return None
        namespace = f" -namespace={shlex.quote(self._place[0])}" if self._place[0] else ""
        place = f"-mount={shlex.quote(self._mount)} {shlex.quote(self._path)}"
        return Made(
            self._title,
            f"vault kv metadata delete{namespace} {place}",
            kept="the next protector of this key source uses it, and another host may do so already",
        )

    @property
    def _title(self) -> str:
        return f'the wrapping key at "{self._mount}/{self._path}"'

    def _latest(self, client: hvac.Client) -> tuple[bytes, int]:
        """Return the latest version of the key and its number, made if there is none."""
        found = self._read(client, None) or self._make(client)
        metadata = found.get("metadata")
        version = metadata.get("version") if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or not isinstance(version, int):
            raise not_vault(self._server.title)
        if metadata.get("deletion_time"):
            raise unusable(
                f"{self._title} will be deleted",
                "the path or its mount has delete_version_after, and what it wraps would be lost",
                hint="set delete_version_after to 0s and write a new version",
            )
        return self._key(found, version), version

    def _make(self, client: hvac.Client) -> dict[str, Any]:
        made = {_FIELD: base64.b64encode(os.urandom(_KEY_BYTES)).decode("ascii")}
        refused: hvac.exceptions.VaultError | None = None
        try:
            # Check-and-set 0: only if there is no version yet.
            client.secrets.kv.v2.create_or_update_secret(self._path, made, cas=0, mount_point=self._mount)
        except (hvac.exceptions.InvalidRequest, hvac.exceptions.Forbidden) as error:
            # If another host was faster, its key counts. To write at its path is "update", which may be forbidden.
            refused = error
        self._has_made_it = refused is None
        found = self._read(client, None)
        if found is not None:
            return found
        if refused is not None:
            raise refused
        raise unusable(f"{self._title} cannot be made", "the server does not show it after it was written")

    def _version(self, client: hvac.Client, version: int) -> bytes:
        found = self._read(client, version)
        if found is None:
            raise unusable(
                f"{self._title} has no version {version}",
                "the path was removed, or its max_versions has dropped the version",
                hint="restore it from a backup of the server, or unlock with another protector",
            )
        return self._key(found, version)

    def _read(self, client: hvac.Client, version: int | None) -> dict[str, Any] | None:
        """Return a version or the latest, and None if there is none. TdefsError(WRAPPING_KEY_UNUSABLE)."""
        refusal: TdefsError | None = None
        try:
            answer = client.secrets.kv.v2.read_secret_version(
                self._path, version, mount_point=self._mount, raise_on_deleted_version=True
            )
            return self._server.data(answer)
        except hvac.exceptions.InvalidPath as error:
            gone = _gone(error)
            if gone is not None:
                refusal = unusable(f"{self._title} is {gone}", _WAY_BACK[gone], hint=_WAY_OUT)
            elif error.errors != []:
                # With words it is the mount or the namespace that is missing.
                raise
        if refusal is not None:
            raise refusal
        return None

    def _key(self, found: dict[str, Any], version: int) -> bytes:
        data = found.get("data")
        if not isinstance(data, dict):
            raise not_vault(self._server.title)
        text, key = data.get(_FIELD), b""
        try:
            # What a person has put there may end in a newline.
            key = base64.b64decode(text.strip(), validate=True) if isinstance(text, str) else b""
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            message = f"{self._title} is none"
            detail = f'version {version} has no field "{_FIELD}" of {_KEY_BYTES} bytes in base64'
            raise unusable(message, detail, hint="name a path that holds nothing else")
        return key


SOURCE = VaultKV


def _gone(error: hvac.exceptions.InvalidPath) -> str | None:
    """Return in a word what has become of a version that was there once, and else None."""
    answer = error.json if isinstance(error.json, dict) else {}
    data = answer.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return None
    return _DESTROYED if metadata.get("destroyed") is True else _DELETED


def _wrapping_key(kept: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(kept, _PURPOSE + context.to_bytes(), _KEY_BYTES)


def _read_params(entry: ProtectorEntry) -> tuple[tuple[str, str, str], int]:
    """Return place and version of an entry. TdefsError(KEYSTORE_DAMAGED) for what this module never writes."""
    where = f"protector {entry.id}"
    try:
        members = fields.read_object(dict(entry.params), where, _PARAMS)
        version = fields.read_int(members["key_version"], f"{where}: key_version", 1, 10**9)
        namespace, mount, path = (
            fields.read_text(members[name], f"{where}: {name}", PLACE) for name in ("namespace", "mount", "path")
        )
    except fields.MalformedError as error:
        raise damaged(str(error)) from None
    return (namespace, mount, path), version

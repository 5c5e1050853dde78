"""A KMIP server as a key source: its key, fetched over TLS, wraps here; and the keys it keeps for that."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Self

from tdefs.errors import Exit, TdefsError
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.key_source import Certificate, KeySource
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.keystore.unsaved import warn_on_stderr
from tdefs.keys.protectors.base import Made, NotMineError, Protector, WrappedProtectorKey, WrongSecretError
from tdefs.keys.settings import SettingsReader
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.fields import KmipSettings, Server, read_fields
from tdefs.keys.sources.kmip.servers import Servers
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret
from tdefs.keys.wrapping_keys import ACTIVE, WRAPPING_KEY_BYTES, ServerKey, WrappingKeys
from tdefs.text import shortened

_PURPOSE = b"tdefs v1 kmip wrapping key"
_DEACTIVATED = "deactivated"
#: States of which KMIP knows no way back, and in which there may be no key material any more.
_DESTROYED = ("destroyed", "destroyed-compromised")


class KmipSource(KeySource, WrappingKeys):
    """A wrapping key on one of several KMIP servers that know the same keys.

    The configuration names the key by identifier or by name. Where it does not, ``wrap`` has the server make
    one for this protector alone. A protector remembers the key's identifier, and the key source's name: an
    entry that another key source made is none of ours if the key cannot be had here.
    """

    kind = "kmip"

    def __init__(self, settings: KmipSettings) -> None:
        self._settings = settings
        self._servers = Servers(settings)
        self._told: set[str] = set()

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """See KeySource."""
        return cls(read_fields(read))

    @property
    def servers(self) -> Sequence[Server]:
        """The servers, in the order of the configuration."""
        return self._settings.servers

    def certificates(self) -> Sequence[Certificate]:
        """See KeySource."""
        return (
            Certificate(self._settings.certificate, "client certificate"),
            Certificate(self._settings.ca, "ca of the key server"),
        )

    # --- wrapping

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See KeySource."""
        if self._settings.key_id or self._settings.key_name:
            uid, key = self._servers.ask(self._configured_key)
            created = 0
        else:
            # one name for all attempts: should the reply to the first get lost, the second finds its key
            name = f"tdefs-{context.volume_id.hex()}-{secrets.token_hex(8)}"
            uid, key = self._servers.ask(partial(self._new_key, name))
            created = 1
        params: dict[str, str | int] = {"key": uid, "created": created, "source": self._settings.name}
        return WrappedProtectorKey(params, wrap_secret(_derived(key, context), protector_key, context))

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See KeySource."""
        uid, _created, source = _read_params(entry)
        if self._settings.key_id not in ("", uid):
            raise NotMineError
        try:
            key = self._servers.ask(lambda client: client.get(self._readable(client.describe(uid)).uid))
        except TdefsError as error:
            if error.exit_code is Exit.WRAPPING_KEY_UNUSABLE and source != self._settings.name:
                raise NotMineError from None
            raise
        try:
            return unwrap_secret(_derived(key, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise WrongSecretError(
                f"the key {shortened(uid)} of the key server does not unlock protector {entry.id}",
                detail="the server has another key under this identifier than when the protector was made",
            ) from None

    def like(self, entry: ProtectorEntry) -> Protector:
        """See Protector. It wraps with the key on the server that ``entry`` has: none is made."""
        return _SameKey(self._settings, self._servers, self._told, entry)

    def made(self, entry: ProtectorEntry) -> Made | None:
        """See Protector."""
        uid = self.made_for(entry)
        return _made(self._settings.name, uid) if uid is not None else None

    def forget(self, entry: ProtectorEntry) -> None:
        """See Protector."""
        uid = self.made_for(entry)
        if uid is not None:
            self._servers.ask(partial(_end, uid))

    # --- the keys on the server

    def list_keys(self) -> Sequence[ServerKey]:
        """See WrappingKeys."""
        return self._servers.ask(_all_keys)

    def create_key(self, name: str) -> str:
        """See WrappingKeys."""
        return self._servers.ask(lambda client: client.create(name))

    def register_key(self, name: str, secret: bytes) -> str:
        """See WrappingKeys."""
        if len(secret) != WRAPPING_KEY_BYTES:
            raise ValueError("the wrapping key has a wrong length")
        return self._servers.ask(lambda client: client.register(name, secret))

    def activate_key(self, uid: str) -> None:
        """See WrappingKeys."""
        self._servers.ask(lambda client: client.activate(uid))

    def revoke_key(self, uid: str, reason: str) -> None:
        """See WrappingKeys."""
        self._servers.ask(lambda client: client.revoke(uid, reason))

    def destroy_key(self, uid: str) -> None:
        """See WrappingKeys."""
        self._servers.ask(partial(_destroy_inactive, uid))

    def made_for(self, entry: ProtectorEntry) -> str | None:
        """See WrappingKeys."""
        uid, created, _source = _read_params(entry)
        return uid if created else None

    # --- which key, and whether it may be used

    def _new_key(self, name: str, client: Client) -> tuple[str, bytes]:
        """Return identifier and bytes of an active key of this name that nobody else has."""
        found = client.locate(name)
        uid = found[0] if found else client.create(name)
        try:
            if client.describe(uid).state != ACTIVE:
                client.activate(uid)
            return uid, client.get(uid)
        except TdefsError as error:
            # Who does not answer is asked again, and has the key then; what is refused stays so.
            if error.exit_code in (Exit.KEY_SERVER_REFUSED, Exit.WRAPPING_KEY_UNUSABLE):
                _made(self._settings.name, uid).remove(partial(_end, uid, client), warn_on_stderr)
            raise

    def _configured_key(self, client: Client) -> tuple[str, bytes]:
        uids = [self._settings.key_id] if self._settings.key_id else client.locate(self._settings.key_name)
        keys = [client.describe(uid) for uid in uids]
        active = [key for key in keys if key.state == ACTIVE]
        if len(active) == 1:
            return active[0].uid, client.get(active[0].uid)
        wanted = shortened(self._settings.key_id or self._settings.key_name)
        if len(active) > 1:
            raise _unusable(f"there are {len(active)} active keys named {wanted}", "name one of them with key_id")
        if keys:
            raise _not_active(keys[0])
        raise _unusable(f"the key server shows no key named {wanted}", "'tdefs key-source create' makes one")

    def _readable(self, key: ServerKey) -> ServerKey:
        """Return the key if it may unwrap.

        KMIP lets a deactivated key process what it has protected only in extraordinary circumstances, and by
        special permission: here that of the configuration.
        """
        if key.state == _DEACTIVATED and self._settings.unwrap_deactivated:
            if key.uid not in self._told:
                self._told.add(key.uid)
                print(f"tdefs: warning: the key {shortened(key.uid)} is deactivated", file=sys.stderr, flush=True)
        elif key.state != ACTIVE:
            raise _not_active(key)
        return key


def _made(source: str, uid: str) -> Made:
    removal = " && ".join(
        f"tdefs key-source {action} {source} {shlex.quote(uid)}" for action in ("revoke", "destroy")
    )
    return Made(f"the key {shortened(uid)} on the key server of {source}", removal)


def _all_keys(client: Client) -> list[ServerKey]:
    keys = []
    for uid in client.locate():
        try:
            keys.append(client.describe(uid))
        except TdefsError as error:
            # destroyed since it was located
            if error.exit_code is not Exit.WRAPPING_KEY_UNUSABLE:
                raise
    return keys


def _end(uid: str, client: Client) -> None:
    """Revoke and destroy a key, however far an earlier attempt came."""
    try:
        state = client.describe(uid).state
    except TdefsError as error:
        if error.exit_code is not Exit.WRAPPING_KEY_UNUSABLE:
            raise
        return
    if state == ACTIVE:
        client.revoke(uid, "cessation-of-operation")
    if state not in _DESTROYED:
        client.destroy(uid)


def _destroy_inactive(uid: str, client: Client) -> None:
    if client.describe(uid).state == ACTIVE:
        raise TdefsError(
            Exit.KEY_SERVER_REFUSED,
            f"the key {shortened(uid)} is active",
            detail="a key that is active is not destroyed",
            hint="revoke it first, and see that every protector that needs it is changed or removed",
        )
    client.destroy(uid)


class _SameKey(KmipSource):
    """The key source, wrapping with the key that an entry of it was wrapped with."""

    def __init__(self, settings: KmipSettings, servers: Servers, told: set[str], entry: ProtectorEntry) -> None:
        super().__init__(settings)
        # each warning is given once for both
        self._servers, self._told = servers, told
        self._uid = _read_params(entry)[0]
        self._params = dict(entry.params)

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See KeySource."""
        key = self._servers.ask(lambda client: client.get(self._readable(client.describe(self._uid)).uid))
        return WrappedProtectorKey(self._params, wrap_secret(_derived(key, context), protector_key, context))

    def made(self, entry: ProtectorEntry) -> None:
        """See Protector. The key was there before, and the old entry needs it until the new one is saved."""

    def forget(self, entry: ProtectorEntry) -> None:
        """See Protector."""


def _derived(key: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(key, _PURPOSE + context.to_bytes(), WRAPPING_KEY_BYTES)


def _read_params(entry: ProtectorEntry) -> tuple[str, bool, str]:
    """Return the key's identifier, whether it was made for the entry alone, and the name of the key source."""
    if entry.kind != KmipSource.kind:
        raise NotMineError
    uid, created, source = (entry.params.get(name) for name in ("key", "created", "source"))
    if len(entry.params) != 3 or not (uid and isinstance(uid, str)) or not isinstance(source, str):
        raise damaged(f"protector {entry.id}: expected the parameters key, created and source")
    if created not in (0, 1):
        raise damaged(f"protector {entry.id}: expected created to be 0 or 1")
    return uid, bool(created), source


def _not_active(key: ServerKey) -> TdefsError:
    hint = "'tdefs key-source activate' makes it so" if key.state == "pre-active" else "unlock another way"
    if key.state == _DEACTIVATED:
        hint = (
            "should the data be needed all the same: set deactivated_key: unwrap in the configuration, and give "
            "the protector another key with 'tdefs protector change'"
        )
    return _unusable(f"the key {shortened(key.uid)} on the key server is {key.state}", hint)


def _unusable(message: str, hint: str) -> TdefsError:
    return TdefsError(Exit.WRAPPING_KEY_UNUSABLE, message, hint=hint)

"""A KMIP server as a key source: its key, fetched over TLS, wraps here; and managing the keys on the server."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from functools import partial
from typing import Self

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import RefusedError, UnusableError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import (
    WRAPPING_KEY_BYTES,
    Made,
    NotMineError,
    Obtained,
    Parameters,
    Protector,
    WrongSecretError,
    malformed_is_damage,
)
from tdefs.keys.sources.asking import Patient
from tdefs.keys.sources.base import ACTIVE, Certificate, KeySource, ServerKey, WrappingKeys
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.connection import Server
from tdefs.keys.sources.kmip.servers import KmipSettings, Servers, read_fields
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.wrapping import WrapContext
from tdefs.text import shortened

_DEACTIVATED = "deactivated"
#: KMIP knows no way back from these states, and there may be no key material any more.
_DESTROYED = ("destroyed", "destroyed-compromised")
_UID = re.compile(r".+", re.DOTALL)
_NAME = re.compile(r".*", re.DOTALL)


class KmipSource(KeySource, WrappingKeys):
    """A wrapping key on one of several KMIP servers that know the same keys.

    The configuration names the key by identifier or by name. If it does not, ``wrap`` has the server make a key
    for this protector alone. An entry has the identifier of the key, and the name of the key source: an entry
    that another key source made is not ours if its key cannot be had here.
    """

    kind = "kmip"
    purpose = b"tdefs v1 kmip wrapping key"
    members = ("key", "created", "source")

    def __init__(self, settings: KmipSettings, dialogue: Dialogue) -> None:
        super().__init__()
        self._settings = settings
        self._dialogue = dialogue
        self._patient: Patient[Client] = Patient(Servers(settings, dialogue.warn), settings.limits, dialogue.note)
        self._warned: set[str] = set()

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        return cls(read_fields(read), dialogue)

    @property
    def servers(self) -> Sequence[Server]:
        """The servers, in the order of the configuration."""
        return self._settings.servers

    def certificates(self) -> Sequence[Certificate]:
        return self._settings.tls.watched()

    # --- wrapping

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector. It is the key itself."""
        made = None
        if self._settings.key_id or self._settings.key_name:
            uid, key = self._patient.ask(self._configured_key)
        else:
            # one name for all attempts: if the reply to the first attempt is lost, the second finds its key
            name = f"tdefs-{context.volume_id.hex()}-{secrets.token_hex(8)}"
            uid, key = self._patient.ask(partial(self._new_key, name))
            made = _made(self._settings.name, uid)
        params: dict[str, str | int] = {
            "key": uid,
            "created": int(made is not None),
            "source": self._settings.name,
        }
        return Obtained(key, params, made)

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        uid, source = params.text("key", _UID), params.text("source", _NAME)
        params.integer("created", 0, 1)
        if self._settings.key_id not in ("", uid):
            raise NotMineError
        try:
            return self._get(uid)
        except UnusableError:
            if source != self._settings.name:
                raise NotMineError from None
            raise

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        uid = params.text("key", _UID)
        return WrongSecretError(
            f"the key {shortened(uid)} of the key server does not unlock protector {params.entry_id}",
            detail="the server has another key under this identifier than when the protector was made",
        )

    def like(self, entry: ProtectorEntry) -> Protector:
        """See Protector. It wraps with the key on the server that ``entry`` has, and makes none."""
        return _SameKey(self, entry)

    def made(self, entry: ProtectorEntry) -> Made | None:
        uid = self.made_for(entry)
        return _made(self._settings.name, uid) if uid is not None else None

    def forget(self, entry: ProtectorEntry) -> None:
        uid = self.made_for(entry)
        if uid is not None:
            self._patient.ask(partial(_end, uid))

    # --- the keys on the server

    def list_keys(self) -> Sequence[ServerKey]:
        return self._patient.ask(_all_keys)

    def create_key(self, name: str) -> str:
        return self._patient.ask(lambda client: client.create(name))

    def register_key(self, name: str, secret: bytes) -> str:
        if len(secret) != WRAPPING_KEY_BYTES:
            raise ValueError("the wrapping key has a wrong length")
        return self._patient.ask(lambda client: client.register(name, secret))

    def activate_key(self, uid: str) -> None:
        self._patient.ask(lambda client: client.activate(uid))

    def revoke_key(self, uid: str, reason: str) -> None:
        self._patient.ask(lambda client: client.revoke(uid, reason))

    def destroy_key(self, uid: str) -> None:
        self._patient.ask(partial(_destroy_inactive, uid))

    def made_for(self, entry: ProtectorEntry) -> str | None:
        with malformed_is_damage():
            params = self.parameters(entry)
            uid, created = params.text("key", _UID), params.integer("created", 0, 1)
        return uid if created else None

    # --- which key, and whether it may be used

    def _new_key(self, name: str, client: Client) -> tuple[str, bytes]:
        """Return identifier and bytes of an active key of this name, which no other protector uses."""
        found = client.locate(name)
        uid = found[0] if found else client.create(name)
        try:
            if client.describe(uid).state != ACTIVE:
                client.activate(uid)
            return uid, client.get(uid)
        except (RefusedError, UnusableError):
            # Another attempt would be refused, too. A server that does not answer is asked again, and has the key.
            _made(self._settings.name, uid).remove(partial(_end, uid, client), self._dialogue.warn)
            raise

    def _configured_key(self, client: Client) -> tuple[str, bytes]:
        uids = [self._settings.key_id] if self._settings.key_id else client.locate(self._settings.key_name)
        keys = [client.describe(uid) for uid in uids]
        active = [key for key in keys if key.state == ACTIVE]
        if len(active) == 1:
            return active[0].uid, client.get(active[0].uid)
        wanted = shortened(self._settings.key_id or self._settings.key_name)
        if len(active) > 1:
            hint = "name one of them with key_id"
            raise UnusableError(f"there are {len(active)} active keys named {wanted}", hint=hint)
        if keys:
            raise _not_active(keys[0])
        hint = "'tdefs key-source create' makes one"
        raise UnusableError(f"the key server shows no key named {wanted}", hint=hint)

    def _get(self, uid: str) -> bytes:
        return self._patient.ask(lambda client: client.get(self._readable(client.describe(uid)).uid))

    def _readable(self, key: ServerKey) -> ServerKey:
        """Return the key if it may unwrap.

        By KMIP a deactivated key may unwrap only in extraordinary circumstances, and by special permission. Here
        the configuration gives the permission.
        """
        if key.state == _DEACTIVATED and self._settings.unwrap_deactivated:
            if key.uid not in self._warned:
                self._warned.add(key.uid)
                self._dialogue.warn(f"the key {shortened(key.uid)} is deactivated")
        elif key.state != ACTIVE:
            raise _not_active(key)
        return key


SOURCE = KmipSource


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
        except UnusableError:
            continue  # destroyed since it was located
    return keys


def _end(uid: str, client: Client) -> None:
    """Revoke and destroy a key. An earlier attempt may have done a part of it."""
    try:
        state = client.describe(uid).state
    except UnusableError:
        return  # destroyed already
    if state == ACTIVE:
        client.revoke(uid, "cessation-of-operation")
    if state not in _DESTROYED:
        client.destroy(uid)


def _destroy_inactive(uid: str, client: Client) -> None:
    if client.describe(uid).state == ACTIVE:
        raise RefusedError(
            f"the key {shortened(uid)} is active",
            "a key that is active is not destroyed",
            "revoke it first, and make sure that each protector that needs it is changed or removed",
        )
    client.destroy(uid)


class _SameKey(KmipSource):
    """The key source, wrapping with the key that an entry of it was wrapped with."""

    def __init__(self, source: KmipSource, entry: ProtectorEntry) -> None:
        super().__init__(source._settings, source._dialogue)
        # each warning is given once for both
        self._patient, self._warned = source._patient, source._warned
        with malformed_is_damage():
            self._uid = self.parameters(entry).text("key", _UID)
        self._params = dict(entry.params)

    def obtain(self, context: WrapContext) -> Obtained:
        return Obtained(self._get(self._uid), self._params)

    def made(self, entry: ProtectorEntry) -> None:
        """See Protector. The key was there before, and the old entry needs it until the new one is saved."""

    def forget(self, entry: ProtectorEntry) -> None:
        """See Protector."""


def _not_active(key: ServerKey) -> UnusableError:
    hint = "'tdefs key-source activate' activates it" if key.state == "pre-active" else "unlock another way"
    if key.state == _DEACTIVATED:
        hint = (
            "if you need the data all the same: set deactivated_key: unwrap in the configuration, and give the"
            " protector another key with 'tdefs protector change'"
        )
    return UnusableError(f"the key {shortened(key.uid)} on the key server is {key.state}", hint=hint)

"""What a key source is: a protector that asks a service or a device; and making the one that is configured."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import UnavailableError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import Protector
from tdefs.keys.sources.settings import Settings, SettingsReader
from tdefs.text import shortened

#: The state in which a wrapping key wraps and unwraps.
ACTIVE = "active"

#: The reasons for revoking a key, in KMIP's words. The first two mean that somebody else may have it.
REVOCATION_REASONS = (
    "key-compromise",
    "ca-compromise",
    "unspecified",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
)

#: The module of each kind, which has a class ``SOURCE``. A new kind needs a line here, its tests and, for its
#: library, an extra in ``pyproject.toml`` of the kind's name. The module is imported when it is used, since the
#: library may not be installed.
_MODULES = {
    "aws-kms": "aws_kms.source",
    "kmip": "kmip.source",
    "pkcs11": "pkcs11.source",
    "vault-kv": "vault.kv",
    "vault-transit": "vault.transit",
}


@dataclass(frozen=True)
class Certificate:
    """A certificate file that a source uses; ``role`` says in words for what."""

    path: Path
    role: str


class KeySource(Protector):
    """A protector that asks a service or a device.

    No secret is given to ``wrap`` and ``unwrap``: they ask for the wrapping, or for the wrapping key, with what
    the configuration says. Beside what Protector allows they raise

    - UnreachableError: there was no answer for as long as :class:`tdefs.keys.sources.asking.Patient` tries;
    - UntrustedServerError: another server than the one that was meant answered (certificate, host name, TLS);
    - RefusedError: the service does not accept the client, or what it asks;
    - UnusableError: the wrapping key is not there, or is disabled, revoked or destroyed.

    ``unwrap`` raises NotMineError also for an entry of the same kind that another service or key made, if the
    parameters of the entry show that.
    """

    words = "the key source"

    @property
    def needs_person(self) -> bool:
        """Whether somebody must type something for it."""
        return False

    @classmethod
    @abstractmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        """Return the source that the configuration describes; nothing is asked yet.

        Call ``read.finish()`` when all fields are read.

        :raises TdefsError: CONFIG_INVALID.
        """

    def certificates(self) -> Sequence[Certificate]:
        """Return the certificate files that it uses. ``tdefs doctor`` watches when they expire."""
        return ()


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A key on the server: its unique identifier, and what the server says about it; ``created`` is in UTC."""

    uid: str
    name: str | None
    state: str
    created: datetime | None


class WrappingKeys(ABC):
    """The wrapping keys that a source has on its server and can manage. Each method raises as KeySource says."""

    @abstractmethod
    def list_keys(self) -> Sequence[ServerKey]:
        """Return the keys that the server shows to this client."""

    @abstractmethod
    def create_key(self, name: str) -> str:
        """Have the server make a key; return its unique identifier. It is not active yet."""

    @abstractmethod
    def register_key(self, name: str, secret: bytes) -> str:
        """Give the server ``secret``, WRAPPING_KEY_BYTES long, to keep; return its unique identifier."""

    @abstractmethod
    def activate_key(self, uid: str) -> None:
        """Allow the use of the key."""

    @abstractmethod
    def revoke_key(self, uid: str, reason: str) -> None:
        """End the use of the key, for one of REVOCATION_REASONS."""

    @abstractmethod
    def destroy_key(self, uid: str) -> None:
        """Have the server forget the key, for ever. Refused for a key that is active."""

    @abstractmethod
    def made_for(self, entry: ProtectorEntry) -> str | None:
        """Return the key that was made for the protector ``entry`` alone, and that ``forget`` destroys."""


def kinds() -> list[str]:
    """Return the kinds of key sources, sorted."""
    return sorted(_MODULES)


def make_key_source(settings: Settings, dialogue: Dialogue) -> KeySource:
    """Return the key source that ``settings`` describe. It warns and asks for a PIN by ``dialogue``.

    :raises TdefsError: CONFIG_INVALID for an unknown kind or wrong fields.
    :raises UnavailableError: the library of the kind is not installed.
    """
    if settings.kind not in _MODULES:
        message = f'there is no kind of key source "{shortened(settings.kind)}"'
        raise settings.error(message, field="kind", hint=f"kinds: {', '.join(kinds())}")
    try:
        module = importlib.import_module(f"tdefs.keys.sources.{_MODULES[settings.kind]}")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f'key source "{settings.name}" needs the Python package {error.name}, which is not installed',
            hint=f"pip install 'tdefs[{settings.kind}]' in the environment of tdefs",
        ) from None
    source: type[KeySource] = module.SOURCE
    return source.from_settings(SettingsReader(settings), dialogue)

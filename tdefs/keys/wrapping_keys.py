"""What a key source offers whose wrapping keys live, and can be managed, on its server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tdefs.keys.keystore.entries import ProtectorEntry

#: Size of a wrapping key in bytes: AES-256.
WRAPPING_KEY_BYTES = 32
#: The state in which a wrapping key wraps and unwraps.
ACTIVE = "active"

#: Why a key is revoked, in KMIP's words. The first two mean that somebody else may have it.
REVOCATION_REASONS = (
    "key-compromise",
    "ca-compromise",
    "unspecified",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
)


@dataclass(frozen=True, slots=True)
class ServerKey:
    """A key on the server: its unique identifier, and what the server says of it; ``created`` is in UTC."""

    uid: str
    name: str | None
    state: str
    created: datetime | None


class WrappingKeys(ABC):
    """The keys that a source may use on its server. Each method raises TdefsError as KeySource says."""

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
        """Let the key be used."""

    @abstractmethod
    def revoke_key(self, uid: str, reason: str) -> None:
        """Let the key be used no more, for one of REVOCATION_REASONS."""

    @abstractmethod
    def destroy_key(self, uid: str) -> None:
        """Have the server forget the key, for ever. Refused for one that is active."""

    @abstractmethod
    def made_for(self, entry: ProtectorEntry) -> str | None:
        """Return the key that was made for the protector ``entry`` alone, and that ``forget`` destroys."""

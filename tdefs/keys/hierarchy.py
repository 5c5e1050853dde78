"""The keys in memory: master key, data keys, the ring of a volume's data keys, and what derives from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tdefs.errors import DataKeyDestroyedError, DataKeyRevokedError, Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.wrapping import hkdf_sha256

SECRET_BYTES = 32
FILE_ID_BYTES = 16
VOLUME_ID_BYTES = 16
HEADER_MAC_KEY_BYTES = 32
LINK_ID_BYTES = 16
LINK_KEY_BYTES = 32
FINGERPRINT_BYTES = 8
MAX_ROUND = 2**32 - 1

AES_256_XTS = "aes-256-xts"
ALGORITHMS = frozenset({AES_256_XTS})

#: Rounds of data keys that were destroyed, and when, in UTC; None where that is not known.
DestroyedRounds = Mapping[tuple[str, int], datetime | None]

# At most 31 bytes of ASCII, so that a name fits a fixed field of a file header.
KEY_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}", re.ASCII)

_HEADER_MAC_PURPOSE = b"tdefs v1 header mac"
_FINGERPRINT_PURPOSE = b"tdefs v1 key fingerprint"
_LINK_PURPOSE = b"tdefs v1 symbolic link aes-256-gcm"


@dataclass(frozen=True)
class MasterKey:
    """A master key, unlocked: ``secret`` is 32 bytes and wraps data keys."""

    name: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.name, self.secret)


@dataclass(frozen=True)
class DataKey:
    """One round of a data key, unlocked: ``secret`` is 32 bytes; file keys derive from it.

    ``round`` counts from 1; ``algorithm`` is what files under this key are encrypted with.
    """

    name: str
    round: int
    algorithm: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.name, self.secret)
        if not 1 <= self.round <= MAX_ROUND:
            raise ValueError(f"round of a data key is not in 1..{MAX_ROUND}")
        if self.algorithm not in ALGORITHMS:
            raise ValueError("unknown algorithm of a data key")


def _check(name: str, secret: bytes) -> None:
    if not KEY_NAME.fullmatch(name):
        raise ValueError("invalid key name")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key secret has {SECRET_BYTES} bytes, not {len(secret)}")


def derive_file_key(data_key: DataKey, file_id: bytes, purpose: bytes, size: int) -> bytes:
    """Return the key of the file with the 16-byte ``file_id``: ``size`` bytes.

    HKDF-SHA256, input the data key's 32 bytes, no salt, ``info`` the ``purpose`` of the file's suite and the
    file id. No two suites have the same purpose.

    :raises ValueError: ``file_id`` is not 16 bytes.
    """
    if len(file_id) != FILE_ID_BYTES:
        raise ValueError(f"a file id has {FILE_ID_BYTES} bytes, not {len(file_id)}")
    return hkdf_sha256(data_key.secret, purpose + file_id, size)


def derive_header_mac_key(data_key: DataKey) -> bytes:
    """Return the 32-byte key of the MAC over the headers of all files under ``data_key``.

    HKDF-SHA256, input the data key's 32 bytes, no salt, ``info`` the 19 bytes of ASCII
    "tdefs v1 header mac", no terminator.
    """
    return hkdf_sha256(data_key.secret, _HEADER_MAC_PURPOSE, HEADER_MAC_KEY_BYTES)


def derive_link_key(data_key: DataKey, link_id: bytes) -> bytes:
    """Return the 32-byte AES-256-GCM key of the one symbolic link with the 16-byte ``link_id``.

    HKDF-SHA256, input the data key's 32 bytes, no salt, ``info`` of 50 bytes::

        0   34  ASCII "tdefs v1 symbolic link aes-256-gcm", no terminator
        34  16  the link id

    :raises ValueError: *link_id* is not 16 bytes.
    """
    if len(link_id) != LINK_ID_BYTES:
        raise ValueError(f"a link id has {LINK_ID_BYTES} bytes, not {len(link_id)}")
    return hkdf_sha256(data_key.secret, _LINK_PURPOSE + link_id, LINK_KEY_BYTES)


def key_fingerprint(data_key: DataKey) -> bytes:
    """Return 8 bytes that identify *data_key* and reveal nothing about its secret; they may be shown.

    HKDF-SHA256, input the data key's 32 bytes, no salt, ``info`` the 24 bytes of ASCII
    "tdefs v1 key fingerprint", no terminator.
    """
    return hkdf_sha256(data_key.secret, _FINGERPRINT_PURPOSE, FINGERPRINT_BYTES)


class KeyRing:
    """The unlocked data keys of one volume, with every round that is not destroyed.

    ``revision`` is that of the keystore that they come from. Of two rings the one with the higher revision is
    newer.
    """

    def __init__(
        self,
        volume_id: bytes,
        default_name: str,
        keys: Iterable[DataKey],
        *,
        revoked: Iterable[tuple[str, int]] = (),
        destroyed: DestroyedRounds | None = None,
        revision: int = 0,
        history_key: bytes | None = None,
    ) -> None:
        """Make a ring of *keys*.

        :raises ValueError: the volume id is not 16 bytes, a round is there twice, or the default key is missing.
        """
        if len(volume_id) != VOLUME_ID_BYTES:
            raise ValueError(f"a volume id has {VOLUME_ID_BYTES} bytes, not {len(volume_id)}")
        self.volume_id = volume_id
        self.default_name = default_name
        self.revision = revision
        #: The key of the history's MACs, 32 bytes, which no rotation changes; None for keys without a keystore.
        self.history_key = history_key
        self.revoked = frozenset(revoked)
        self.destroyed = dict(destroyed or {})
        self._rounds: dict[str, dict[int, DataKey]] = {}
        for key in keys:
            if self._rounds.setdefault(key.name, {}).setdefault(key.round, key) is not key:
                raise ValueError(f"round {key.round} of data key {key.name} is there twice")
        if default_name not in self._rounds:
            raise ValueError("the default data key is not in the key ring")

    def __repr__(self) -> str:
        return f"KeyRing(volume_id={self.volume_id.hex()}, names={self.names()})"

    def __iter__(self) -> Iterator[DataKey]:
        """Every round of every data key, by name and then by round."""
        for name in self.names():
            for number in sorted(self._rounds[name]):
                yield self._rounds[name][number]

    def names(self) -> list[str]:
        """Return the names of the data keys, sorted."""
        return sorted(self._rounds)

    def is_revoked(self, key: DataKey) -> bool:
        """Return whether no new file may use this round."""
        return (key.name, key.round) in self.revoked

    def current(self, name: str) -> DataKey:
        """Return the newest round of ``name`` that is not revoked: the key for new files.

        :raises TdefsError: DATA_KEY_UNKNOWN, DATA_KEY_REVOKED.
        """
        rounds = self._rounds.get(name)
        if rounds is None:
            raise self._unknown(f"data key {_shown(name)} is not in the keystore")
        active = [number for number, key in rounds.items() if not self.is_revoked(key)]
        if not active:
            raise DataKeyRevokedError(
                f"data key {name} is revoked, so no new file may use it",
                hint=f"make a new round with 'tdefs key rotate {name}', or name another key in the policy",
            )
        return rounds[max(active)]

    def get(self, name: str, round: int) -> DataKey:
        """Return one round of ``name``: the key of an existing file.

        :raises TdefsError: DATA_KEY_UNKNOWN, DATA_KEY_DESTROYED.
        """
        key = self._rounds.get(name, {}).get(round)
        if key is None and (name, round) in self.destroyed:
            raise DataKeyDestroyedError(was_destroyed(name, round, self.destroyed[name, round]))
        if key is None:
            raise self._unknown(f"round {round} of data key {_shown(name)} is not in the keystore")
        return key

    def _unknown(self, message: str) -> TdefsError:
        return TdefsError(
            Exit.DATA_KEY_UNKNOWN, message, detail=f"the keystore has the data keys {', '.join(self.names())}"
        )


def history_key_of(ring: KeyRing) -> bytes:
    """Return the key of the history's MACs.

    :raises ValueError: the keys come from no keystore.
    """
    if ring.history_key is None:
        raise ValueError("these keys are of no keystore")
    return ring.history_key


def was_destroyed(name: str, round: int, time: datetime | None) -> str:
    """Return in words that a round of a data key was destroyed, and when if ``time`` (in UTC) is known."""
    return f"round {round} of data key {name} was destroyed" + (f" at {show_time(time)}" if time else "")


def _shown(name: str) -> str:
    """Return ``name`` as it may stand in a message; it can come from a damaged header."""
    return name if KEY_NAME.fullmatch(name) else ascii(name)

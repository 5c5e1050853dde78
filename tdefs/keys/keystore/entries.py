"""What a keystore contains: the document, and its entries. Its form as text is in text.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tdefs.errors import KeystoreDamagedError

#: The version of the format that is written, and the only one that is read.
VERSION = 4
MAC_BYTES = 32
#: The cipher suite that every file may have.
FIRST_SUITE = 1
MAX_LABEL_CHARACTERS = 63

ACTIVE = "active"
REVOKED = "revoked"
DESTROYED = "destroyed"
STATES = frozenset({ACTIVE, REVOKED, DESTROYED})


@dataclass(frozen=True)
class MasterKeyEntry:
    """A master key: known by name; its secret is in the entries of the protectors."""

    name: str
    created: datetime
    current: bool
    retired: datetime | None = None


@dataclass(frozen=True)
class ProtectorEntry:
    """What one protector has wrapped; ``params`` is what the kind needs to unwrap it, and has no secret.

    ``wrapped`` is the protector key, 32 random bytes, wrapped by the protector's secret;
    ``wrapped_master_key`` is the master key wrapped under the protector key, and ``kept_key`` the protector
    key wrapped under the master key, so that a new master key can be given to a protector without its
    secret.
    """

    id: str
    kind: str
    created: datetime
    master_key: str
    params: Mapping[str, str | int]
    wrapped: bytes
    label: str = ""
    wrapped_master_key: bytes = b""
    kept_key: bytes = b""


@dataclass(frozen=True)
class RoundEntry:
    """One round of a data key, wrapped by the master key ``wrapped_by``.

    After it was destroyed, ``wrapped_by`` and ``wrapped`` are None. ``fingerprint`` is that of the key, 8 bytes.
    """

    round: int
    algorithm: str
    created: datetime
    state: str
    wrapped_by: str | None
    wrapped: bytes | None
    fingerprint: bytes = b""
    revoked: datetime | None = None
    destroyed: datetime | None = None


@dataclass(frozen=True)
class DataKeyEntry:
    """A data key with its rounds, oldest first; exactly one data key of a keystore is the default."""

    name: str
    default: bool
    rounds: tuple[RoundEntry, ...]


@dataclass(frozen=True)
class Place:
    """Where a volume lies: the absolute path of its backing directory, and tdefs's own directory in that.

    The inode number of that directory distinguishes the volume from a copy, which has another one. Its device
    number may change with each start of the host.
    """

    path: str
    device: int
    inode: int


@dataclass(frozen=True)
class Statements:
    """What a volume may do. Without arguments it is the strictest.

    ``plain_files`` says whether files may lie in it that are not encrypted; after a policy was accepted that
    leaves any in the clear, this stays so. Files of a lower cipher suite than ``lowest_suite`` are refused.
    ``policy_digest`` is that of the policy that was accepted, 64 hexadecimal digits, or empty if everything is
    encrypted. ``policy`` is the absolute path of its file, which says where to look for it and nothing more.
    """

    plain_files: bool = False
    lowest_suite: int = FIRST_SUITE
    policy_digest: str = ""
    policy: str = ""


@dataclass(frozen=True)
class VolumeEntry:
    """A volume that uses the keystore, where it was when a change last saw it, and what it may do.

    See :class:`Place` and :class:`Statements`.
    """

    id: str
    registered: datetime
    path: str
    device: int
    inode: int
    plain_files: bool
    lowest_suite: int
    policy_digest: str
    policy: str

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.path, self.device, self.inode)

    @property
    def statements(self) -> Statements:
        """What it may do."""
        return Statements(self.plain_files, self.lowest_suite, self.policy_digest, self.policy)


@dataclass(frozen=True)
class HistoryAnchor:
    """The history log as it was when the keystore was last written.

    ``wrapped`` is the key of its MACs, wrapped under the master key ``wrapped_by``; ``count`` is how many
    records it had, and ``mac`` the last MAC among them (32 bytes, zero if there was none).
    """

    wrapped_by: str
    wrapped: bytes
    count: int
    mac: bytes


@dataclass(frozen=True)
class Document:
    """Everything in a keystore file. ``mac`` is 32 bytes, made with the current master key.

    ``revision`` counts the changes, from 1. ``volumes`` are those that use the keystore, perhaps none.
    """

    volume_id: bytes
    created: datetime
    master_keys: tuple[MasterKeyEntry, ...]
    protectors: tuple[ProtectorEntry, ...]
    data_keys: tuple[DataKeyEntry, ...]
    mac: bytes
    revision: int
    history: HistoryAnchor
    volumes: tuple[VolumeEntry, ...] = ()

    def current_master_key(self) -> MasterKeyEntry:
        """Return the one master key that is current."""
        return next(entry for entry in self.master_keys if entry.current)

    def default_data_key(self) -> DataKeyEntry:
        """Return the one data key that is the default."""
        return next(entry for entry in self.data_keys if entry.default)

    def destroyed_rounds(self) -> dict[tuple[str, int], datetime | None]:
        """Return name and round of all that is destroyed of data keys, and when that was, in UTC."""
        return {
            (key.name, entry.round): entry.destroyed
            for key in self.data_keys
            for entry in key.rounds
            if entry.state == DESTROYED
        }


def is_label(text: str) -> bool:
    """Return whether a protector may have this label: a short printable text, which may be empty."""
    return len(text) <= MAX_LABEL_CHARACTERS and text.isprintable()


def damaged(detail: str) -> KeystoreDamagedError:
    """Return the error for a keystore that is not as it was written."""
    return KeystoreDamagedError(
        "the keystore is damaged",
        detail=detail,
        hint="restore the keystore from a backup; the secret that unlocks it is not at fault",
    )

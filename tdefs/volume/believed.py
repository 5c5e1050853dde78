"""What tdefs believes about a volume before it is mounted: what it may do, and how its last session ended.

The keystore says what it may do. MACs under the keystore's keys prove how its last session ended. Nothing else in
the volume's own directory is believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tdefs.data.forms import Expectations
from tdefs.errors import TdefsError
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.entries import Document, Statements
from tdefs.keys.keystore.file import Unlocked
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.description import Volume
from tdefs.volume.known import KnownVolumes, known_volumes
from tdefs.volume.registry import recognised, statements_of
from tdefs.volume.session_record import (
    Ending,
    LastSession,
    SessionBook,
    last_session,
    read_session,
)


def _never(_path: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Believed:
    """What is believed about a volume. Without arguments it is as strict as possible.

    ``had_header`` returns whether the header of a path is known to have been on the disk, so that no crash of the
    last session has lost it.
    """

    statements: Statements = field(default_factory=Statements)
    last: LastSession = field(default_factory=LastSession)
    had_header: Callable[[str], bool] = _never

    def expectations(self, volume: Volume) -> Expectations:
        """Return what may be found in *volume* before it is mounted again."""
        may = self.statements
        return Expectations(
            volume.volume_id,
            plain_files=may.plain_files,
            lost_headers=self.last.ending is Ending.UNCLEAN,
            lowest_suite=may.lowest_suite,
        )

    def policy(self) -> Policy:
        """Return the policy that was accepted; if it cannot be read any more, one that encrypts everything."""
        if not self.statements.policy_digest or not self.statements.policy:
            return Policy.everything()
        try:
            policy = load_policy(Path(self.statements.policy))
        except (TdefsError, OSError):
            return Policy.everything()
        return policy if policy.digest() == self.statements.policy_digest else Policy.everything()


#: For a volume of which nothing is known.
STRICTEST = Believed()


@dataclass(frozen=True, slots=True)
class Opened:
    """A volume whose keystore is unlocked, and what the keystore proves about it.

    ``entry`` is the id of the volume's entry in the keystore, ``None`` for a copy that it does not know; ``known``
    is what its history knows; ``book`` is for a daemon's own session.
    """

    unlocked: Unlocked
    believed: Believed
    entry: str | None
    known: KnownVolumes
    book: SessionBook


def opened(volume: Volume, unlocked: Unlocked, keystore: Path) -> Opened:
    """Return what the *unlocked* keystore, which lies at *keystore*, proves about *volume*.

    :raises OSError: the volume's own directory cannot be looked at.
    """
    document, key = unlocked.document, history_key_of(unlocked.ring)
    entry = recognised(document, volume)
    id = None if entry is None else entry.id
    known = known_volumes(keystore, document, key)
    believed = Believed(statements_of(document, volume), last_session(volume, id, known, key))
    return Opened(unlocked, believed, id, known, SessionBook(volume, id, keystore, key, known))


def book_of(volume: Volume, entry: str, unlocked: Unlocked, keystore: Path) -> SessionBook:
    """Return the book for the sessions of *volume*, which is *entry* in the *unlocked* keystore."""
    key = history_key_of(unlocked.ring)
    return SessionBook(volume, entry, keystore, key, known_volumes(keystore, unlocked.document, key))


def shown(volume: Volume, document: Document | None) -> Believed:
    """Return what can be shown about *volume* without a secret; it is for people only, since it may be false.

    :param document: of its keystore; ``None`` if that cannot be read. Then a file in the clear is shown as plain,
        whether the policy allows it or not.
    """
    session = read_session(volume)
    ending = Ending.CLEAN if session is None or session.clean else Ending.UNCLEAN
    try:
        may = Statements(plain_files=True) if document is None else statements_of(document, volume)
    except OSError:
        may = Statements(plain_files=True)
    return Believed(may, LastSession(ending))

"""What the history of a keystore knows about its volumes.

The history may lie on another disk than the volumes, and nobody without the keys can add to it unseen. So it
proves which record of a session, and which manifest, is the newest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.history import append, read_history
from tdefs.keys.keystore.history_checking import History, check_history
from tdefs.private import UntrustedError, reason_of

#: The events of a session: its begin, its clean end, and that the session of a copy counts as the newest.
BEGIN, END, TAKEN_OVER = "mount", "unmount", "session taken over"
#: The event of a new manifest.
MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class KnownVolumes:
    """What the history knows of each volume, by the id of its entry in the keystore.

    ``newest`` has the number and the id of its newest session, and whether that has ended. ``counters`` has the
    newest counters of its manifests. ``fault`` says why the history proves nothing about sessions, or is empty;
    ``is_read`` is whether the history could be read at all.
    """

    newest: Mapping[str, tuple[int, str, bool]] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""
    is_read: bool = True

    def number(self, entry: str) -> int:
        """Return the number of the newest session of a volume, 0 if none is known."""
        return self.newest.get(entry, (0, "", False))[0]

    def counter(self, entry: str) -> int:
        """Return the counter of the newest manifest of a volume, 0 if none is known."""
        return self.counters.get(entry, 0)


def known_volumes(keystore: Path, document: Document, history_key: bytes) -> KnownVolumes:
    """Return what the history of *keystore*, which has the *document*, knows. All of the history is read."""
    try:
        files = read_history(keystore)
    except (OSError, UntrustedError) as error:
        fault = f"the keystore's history cannot be read: {reason_of(error)}"
        return KnownVolumes(fault=fault, is_read=False)
    return known_in(check_history(files, history_key, document.history, document.revision))


def known_in(history: History) -> KnownVolumes:
    """Return what a checked history knows."""
    newest: dict[str, tuple[int, str, bool]] = {}
    counters: dict[str, int] = {}
    for record in history.by_key:
        event, what = record["event"], record["what"]
        match event, what.get("volume"), what.get("session"), what.get("session_id"), what.get("counter"):
            case str(), str(entry), int(number), str(id), _ if event in (BEGIN, END, TAKEN_OVER):
                newest[entry] = number, id, event == END
            case "manifest", str(entry), _, _, int(counter):
                counters[entry] = max(counters.get(entry, 0), counter)
    if history.findings:
        fault = f"the keystore's history is not as it was written: {history.findings[0]}"
        return KnownVolumes(counters=counters, fault=fault)
    return KnownVolumes(newest, counters)


def note_counter(keystore: Path, key: bytes, entry: str, counter: int) -> None:
    """Write the counter of a volume's new manifest into the history.

    :raises OSError: it was not written.
    :raises UntrustedError: a file of the history is not tdefs's own.
    """
    append(keystore, MANIFEST, {"volume": entry, "counter": counter}, key)

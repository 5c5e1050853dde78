"""The counter of a volume's manifests in the history of its keystore, which may lie elsewhere than the volume."""

from __future__ import annotations

import logging
from pathlib import Path

from tdefs.keys.keystore.history import append, read_history, records_under
from tdefs.private import UntrustedError
from tdefs.text import printable

log = logging.getLogger(__name__)

EVENT = "manifest"


def newest_counter(keystore: Path, key: bytes, entry: str) -> int:
    """Return the newest counter that the history knows of the volume with this *entry* of the keystore; 0 if none.

    A history that cannot be read says nothing.
    """
    try:
        files = read_history(keystore)
    except (OSError, UntrustedError) as error:
        log.warning("the keystore's history cannot be read: %s", printable(str(error)))
        return 0
    counters = [
        record["what"].get("counter")
        for record in records_under(files, key, EVENT)
        if record["what"].get("volume") == entry
    ]
    return max((counter for counter in counters if isinstance(counter, int)), default=0)


def note_counter(keystore: Path, key: bytes, entry: str, counter: int) -> None:
    """Write the counter down. Raises OSError, UntrustedError."""
    append(keystore, EVENT, {"volume": entry, "counter": counter}, key)

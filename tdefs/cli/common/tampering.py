"""What commands need to compare a volume with its manifest."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from tdefs.manifest.state import MANIFEST_FILE, OLDER_HINT, Binding, State
from tdefs.offline.report import Finding
from tdefs.policy.paths import classify
from tdefs.text import printable
from tdefs.volume.believed import Opened
from tdefs.volume.description import PRIVATE_DIRECTORY, Volume

log = logging.getLogger(__name__)


def binding_of(volume: Volume, opened: Opened, keystore: Path) -> Binding:
    """Return what is needed to check the manifest of *volume*, which was *opened* with *keystore*."""
    if not opened.known.is_read:
        log.warning("%s", printable(opened.known.fault))
    return Binding.of(volume, opened.unlocked.ring, keystore, opened.entry, opened.known)


def tampering_findings(state: State) -> Iterator[Finding]:
    """Yield a finding for each file that is not as the last unmount left it."""
    for line in state.describe_volume():
        yield Finding(
            f"{PRIVATE_DIRECTORY}/{MANIFEST_FILE}",
            "manifest",
            line,
            OLDER_HINT,
        )
    for path, found in sorted(state.differences.items()):
        name = os.fsdecode(path)
        yield Finding(
            name,
            classify(name).kind.value,
            f"not as the last unmount left it: {found}",
            "restore it from a backup, or accept it with 'tdefs accept'",
        )

"""What commands need to compare a volume with its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tdefs.keys.hierarchy import KeyRing
from tdefs.manifest.state import MANIFEST_FILE, OLDER_HINT, Binding, State, entry_of
from tdefs.offline.report import Finding
from tdefs.policy.paths import classify
from tdefs.volume.description import PRIVATE_DIRECTORY, Volume


def binding_of(volume: Volume, ring: KeyRing, keystore: Path) -> Binding:
    """Return what the manifest of *volume* is checked with, given its keys and the keystore that they are from."""
    return Binding.of(volume, ring, keystore, entry_of(volume, keystore))


def tampering_findings(state: State) -> Iterator[Finding]:
    """Yield as findings what is not as the last unmount left it."""
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
            "restore it from a backup, or say with 'tdefs accept' that it is meant",
        )

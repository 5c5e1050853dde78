"""What commands need to compare a volume with its manifest."""

from __future__ import annotations

from pathlib import Path

from tdefs.errors import TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore import load_keystore
from tdefs.manifest.state import Binding
from tdefs.registry import recognised
from tdefs.volume import Volume


def binding_of(volume: Volume, ring: KeyRing, keystore: Path) -> Binding:
    """Return what the manifest of *volume* is checked with, given its keys and the keystore that they are from."""
    try:
        entry = recognised(load_keystore(keystore).document, volume)
    except (TdefsError, OSError):
        entry = None
    return Binding.of(volume, ring, keystore, entry.id if entry is not None else None)

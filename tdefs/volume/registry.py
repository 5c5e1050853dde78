"""Which volumes a keystore knows, and whether each is at its known place.

A copy of a volume holds all that the volume holds, also its id and its description. Only the place differs: the
path, and the inode number of tdefs's own directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import TdefsError
from tdefs.keys.keystore.entries import Document, Place, Statements, VolumeEntry
from tdefs.text import printable
from tdefs.volume.description import PRIVATE_DIRECTORY, Volume, read_volume


@dataclass(frozen=True, slots=True)
class Unseen:
    """A volume that a keystore knows, and that is not at its known place; ``reason`` is a text for people."""

    entry: VolumeEntry
    reason: str


def place_of(volume: Volume) -> Place:
    """Return where *volume* lies now.

    :raises OSError: its own directory cannot be examined.
    """
    status = volume.private.stat()
    return Place(os.fspath(volume.backing), status.st_dev, status.st_ino)


def recognised(document: Document, volume: Volume) -> VolumeEntry | None:
    """Return the entry of *volume*, ``None`` for one that the keystore does not know at this place.

    It is known at its path, at any other path of the same directory (a bind mount), and where it was renamed
    to within its file system.

    :raises OSError: the volume's own directory cannot be examined.
    """
    here = place_of(volume)
    return next((entry for entry in document.volumes if _is_here(entry, here)), None)


def statements_of(document: Document, volume: Volume) -> Statements:
    """Return what *volume* may do, as the keystore with the *document* says.

    A volume that is not known at its place may be a copy of any known one, so it may do only what all of them may.

    :raises OSError: the volume's own directory cannot be examined.
    """
    known = recognised(document, volume)
    if known is not None:
        return known.statements
    all_of_them = [entry.statements for entry in document.volumes]
    if not all_of_them:
        return Statements()
    policies = {(one.policy_digest, one.policy) for one in all_of_them}
    digest, policy = policies.pop() if len(policies) == 1 else ("", "")
    return Statements(
        plain_files=all(one.plain_files for one in all_of_them),
        lowest_suite=max(one.lowest_suite for one in all_of_them),
        policy_digest=digest,
        policy=policy,
    )


def was_renamed(entry: VolumeEntry, volume: Volume) -> bool:
    """Return whether the *volume* that was recognised by *entry* has left the path that the keystore knows."""
    return entry.path != os.fspath(volume.backing) and _private_directory(entry) is None


def _is_here(entry: VolumeEntry, here: Place) -> bool:
    if entry.inode != here.inode:
        return False
    if entry.path == here.path:
        # not its device: that may have another number since the host was started
        return True
    try:
        there = _private_directory(entry)
        if there is not None:
            return (there.st_dev, there.st_ino) == (here.device, here.inode)
        # renamed: an inode number is used again only after its directory is gone. The directory above the old path
        # must be on the same file system: the clone of a disk that is not mounted now may have its numbers
        return entry.device == here.device == _device_above(Path(entry.path))
    except OSError:
        return False  # a directory that cannot be examined may still be there


def _private_directory(entry: VolumeEntry) -> os.stat_result | None:
    """Return the attributes of tdefs's own directory at the place of *entry*, ``None`` if it does not exist."""
    try:
        return Path(entry.path, PRIVATE_DIRECTORY).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _device_above(path: Path) -> int:
    """Return the device of the nearest existing directory above *path*.

    :raises OSError: it cannot be examined.
    """
    return next(parent for parent in path.parents if parent.exists()).stat().st_dev


def look(document: Document, entry: VolumeEntry) -> Volume | Unseen:
    """Return the volume of *entry*, if it is where the keystore knows it to be."""
    try:
        volume = read_volume(Path(entry.path))
        inode = volume.private.stat().st_ino
    except TdefsError as error:
        return Unseen(entry, printable(error.detail or error.message))
    except OSError as error:
        return Unseen(entry, f"it cannot be looked at: {error.strerror}")
    if volume.volume_id != document.volume_id:
        return Unseen(entry, "another volume is there")
    if inode != entry.inode:
        return Unseen(entry, "what is there is a copy of it, or was restored from a backup")
    return volume

"""Changes of which volumes a keystore knows: each takes an unlocked keystore and returns the new one."""

from __future__ import annotations

from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import Document, Place, Statements, VolumeEntry
from tdefs.keys.keystore import Unlocked
from tdefs.keys.seal import new_volume_entry, open_keys, sign

_PREFIX = "vol_"


def find_volume(document: Document, id: str) -> VolumeEntry:
    """Return the entry of volume ``id``. Raises TdefsError(VOLUME_UNKNOWN)."""
    for entry in document.volumes:
        if entry.id == id:
            return entry
    raise TdefsError(
        Exit.VOLUME_UNKNOWN,
        f"the keystore knows no volume {id!a}",
        detail=f"it knows {', '.join(entry.id for entry in document.volumes) or 'none'}",
        hint="'tdefs volume list' shows them",
    )


def add_volume(unlocked: Unlocked, place: Place, statements: Statements) -> tuple[Unlocked, str]:
    """Register the volume at ``place``, and what it may do; return its id, too."""
    numbers = [entry.id.removeprefix(_PREFIX) for entry in unlocked.document.volumes]
    id = f"{_PREFIX}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
    return _with_volumes(unlocked, (*unlocked.document.volumes, new_volume_entry(id, place, statements))), id


def move_volume(unlocked: Unlocked, id: str, place: Place) -> Unlocked:
    """Note that volume ``id`` is at ``place`` now. Raises TdefsError(VOLUME_UNKNOWN)."""
    return _with_volumes(unlocked, moved(unlocked.document, id, place).volumes)


def restate_volume(unlocked: Unlocked, id: str, may: Statements) -> Unlocked:
    """Note what volume ``id`` may do from now on. Raises TdefsError(VOLUME_UNKNOWN)."""
    old = find_volume(unlocked.document, id)
    new = replace(
        old,
        plain_files=may.plain_files,
        lowest_suite=may.lowest_suite,
        policy_digest=may.policy_digest,
        policy=may.policy,
    )
    return _with_volumes(unlocked, tuple(new if entry is old else entry for entry in unlocked.document.volumes))


def forget_volume(unlocked: Unlocked, id: str) -> Unlocked:
    """Take volume ``id`` out of those that are known. Raises TdefsError(VOLUME_UNKNOWN)."""
    old = find_volume(unlocked.document, id)
    return _with_volumes(unlocked, tuple(entry for entry in unlocked.document.volumes if entry is not old))


def moved(document: Document, id: str, place: Place) -> Document:
    """Return ``document``, which somebody must sign, with volume ``id`` at ``place``."""
    old = find_volume(document, id)
    new = replace(old, path=place.path, device=place.device, inode=place.inode)
    return replace(document, volumes=tuple(new if entry is old else entry for entry in document.volumes))


def _with_volumes(unlocked: Unlocked, volumes: tuple[VolumeEntry, ...]) -> Unlocked:
    old = unlocked.document
    master = unlocked.master
    document = sign(replace(old, volumes=volumes, revision=old.revision + 1), master)
    return replace(unlocked, document=document, ring=open_keys(document, {master.name: master}))

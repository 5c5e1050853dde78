"""What a change of protectors and volumes does: each function takes an unlocked keystore and returns the next one.

Nothing is written here: that is done by transaction.py. The changes of keys are in key_changes.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.checking import refuse_cost, refuse_one_more
from tdefs.keys.keystore.entries import (
    MAX_LABEL_CHARACTERS,
    Document,
    Place,
    ProtectorEntry,
    Statements,
    VolumeEntry,
    is_label,
)
from tdefs.keys.keystore.file import Unlocked
from tdefs.keys.keystore.wrapped_keys import new_protector_entry, new_volume_entry, open_keys, sign
from tdefs.keys.protectors.base import Protector
from tdefs.text import shortened

_Entry = TypeVar("_Entry")

# --- what all changes have in common


def next_name(prefix: str, names: Iterable[str]) -> str:
    """Return *prefix* with the number after the highest one among *names*."""
    numbers = [name.removeprefix(prefix) for name in names]
    return f"{prefix}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"


def exchanged(entries: tuple[_Entry, ...], old: _Entry, new: _Entry) -> tuple[_Entry, ...]:
    """Return *entries* with *new* in the place of *old*."""
    return tuple(new if entry is old else entry for entry in entries)


def changed(unlocked: Unlocked, *, master: MasterKey | None = None, **members: Any) -> Unlocked:
    """Return the next revision of the keystore, with these *members* of its document, under *master*'s MAC."""
    old = unlocked.document
    master = master or unlocked.master
    document = sign(replace(old, revision=old.revision + 1, **members), master)
    return replace(unlocked, document=document, master=master, ring=open_keys(document, {master.name: master}))


def find(
    entries: Mapping[str, _Entry], name: str, code: Exit, what: str, hint: str, *, verb: str = "has"
) -> _Entry:
    """Return the entry of this *name*, which is a *what*, such as "protector".

    :raises TdefsError: *code*.
    """
    if name in entries:
        return entries[name]
    detail = f"it {verb} {', '.join(entries) or 'none'}"
    raise TdefsError(code, f'the keystore {verb} no {what} "{shortened(name)}"', detail=detail, hint=hint)


# --- protectors


def find_protector(document: Document, id: str) -> ProtectorEntry:
    """Return the entry of protector *id*.

    :raises TdefsError: PROTECTOR_UNKNOWN.
    """
    by_id = {entry.id: entry for entry in document.protectors}
    return find(by_id, id, Exit.PROTECTOR_UNKNOWN, "protector", "'tdefs protector list' shows them")


def add_protector(unlocked: Unlocked, protector: Protector, label: str) -> tuple[Unlocked, str]:
    """Add *protector*; return its id, too.

    :raises TdefsError: USAGE for a bad label; KEYSTORE_FULL; and what the protector raises.
    """
    _check_label(label)
    document = unlocked.document
    refuse_one_more(document, protector.kind)
    id = next_name("pr_", (entry.id for entry in document.protectors))
    entry = new_protector_entry(document.volume_id, protector, id, label, unlocked.master)
    return _with_protectors(unlocked, (*document.protectors, entry)), id


def change_protector(unlocked: Unlocked, id: str, protector: Protector) -> Unlocked:
    """Give protector *id* another secret, perhaps of another kind, and a new protector key.

    :raises TdefsError: PROTECTOR_UNKNOWN, KEYSTORE_FULL, and what the protector raises.
    """
    document = unlocked.document
    old = find_protector(document, id)
    if protector.kind != old.kind:
        refuse_one_more(document, protector.kind)
    new = new_protector_entry(document.volume_id, protector, id, old.label, unlocked.master)
    return _with_protectors(unlocked, exchanged(document.protectors, old, new))


def restore_protector(unlocked: Unlocked, old: ProtectorEntry) -> Unlocked:
    """Undo :func:`change_protector`: *old* is the entry as it was, under the same master key."""
    new = find_protector(unlocked.document, old.id)
    return _with_protectors(unlocked, exchanged(unlocked.document.protectors, new, old))


def label_protector(unlocked: Unlocked, id: str, label: str) -> Unlocked:
    """Give protector *id* another label, or none.

    :raises TdefsError: PROTECTOR_UNKNOWN, USAGE.
    """
    _check_label(label)
    old = find_protector(unlocked.document, id)
    return _with_protectors(unlocked, exchanged(unlocked.document.protectors, old, replace(old, label=label)))


def remove_protector(unlocked: Unlocked, id: str) -> Unlocked:
    """Remove protector *id*.

    :raises TdefsError: PROTECTOR_UNKNOWN, LAST_PROTECTOR.
    """
    old = find_protector(unlocked.document, id)
    rest = tuple(entry for entry in unlocked.document.protectors if entry is not old)
    if not rest:
        raise TdefsError(
            Exit.LAST_PROTECTOR,
            f"protector {id} is the last one, and without one nobody could unlock the keystore",
            hint="add another one first, or change this one with 'tdefs protector change'",
        )
    return _with_protectors(unlocked, rest)


def _check_label(label: str) -> None:
    if not is_label(label):
        raise TdefsError(Exit.USAGE, f"a label is a printable text of at most {MAX_LABEL_CHARACTERS} characters")


def _with_protectors(unlocked: Unlocked, protectors: tuple[ProtectorEntry, ...]) -> Unlocked:
    refuse_cost(replace(unlocked.document, protectors=protectors))
    return changed(unlocked, protectors=protectors)


# --- volumes


def find_volume(document: Document, id: str) -> VolumeEntry:
    """Return the entry of volume *id*.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    by_id = {entry.id: entry for entry in document.volumes}
    return find(by_id, id, Exit.VOLUME_UNKNOWN, "volume", "'tdefs volume list' shows them", verb="knows")


def add_volume(unlocked: Unlocked, place: Place, may: Statements) -> tuple[Unlocked, str]:
    """Register the volume at *place*, and what it *may* do; return its id, too."""
    volumes = unlocked.document.volumes
    id = next_name("vol_", (entry.id for entry in volumes))
    return changed(unlocked, volumes=(*volumes, new_volume_entry(id, place, may))), id


def move_volume(unlocked: Unlocked, id: str, place: Place) -> Unlocked:
    """Note that volume *id* is at *place* now.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    return changed(unlocked, volumes=moved(unlocked.document, id, place).volumes)


def moved(document: Document, id: str, place: Place) -> Document:
    """Return *document* with volume *id* at *place*; its MAC is still to be made.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(document, id)
    return replace(document, volumes=exchanged(document.volumes, old, replace(old, **vars(place))))


def restate_volume(unlocked: Unlocked, id: str, may: Statements) -> Unlocked:
    """Note what volume *id* *may* do from now on.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(unlocked.document, id)
    return changed(unlocked, volumes=exchanged(unlocked.document.volumes, old, replace(old, **vars(may))))


def forget_volume(unlocked: Unlocked, id: str) -> Unlocked:
    """Remove volume *id* from those that are known.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(unlocked.document, id)
    return changed(unlocked, volumes=tuple(entry for entry in unlocked.document.volumes if entry is not old))

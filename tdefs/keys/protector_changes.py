"""Changes of a keystore's protectors: each takes an unlocked keystore and returns the new one."""

from __future__ import annotations

from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import Document, ProtectorEntry
from tdefs.keys.document_text import MAX_LABEL_CHARACTERS, is_label
from tdefs.keys.keystore import Unlocked
from tdefs.keys.limits import refuse_cost, refuse_one_more
from tdefs.keys.protectors.base import Protector
from tdefs.keys.seal import new_protector_entry, open_keys, sign

_PREFIX = "pr_"


def find_protector(document: Document, id: str) -> ProtectorEntry:
    """Return the entry of protector ``id``. Raises TdefsError(PROTECTOR_UNKNOWN)."""
    for entry in document.protectors:
        if entry.id == id:
            return entry
    raise TdefsError(
        Exit.PROTECTOR_UNKNOWN,
        f"the keystore has no protector {id!a}",
        detail=f"it has {', '.join(entry.id for entry in document.protectors)}",
        hint="'tdefs protector list' shows them",
    )


def add_protector(unlocked: Unlocked, protector: Protector, label: str) -> tuple[Unlocked, str]:
    """Add ``protector``; return its id, too.

    Raises what the protector raises, and TdefsError: USAGE for a bad label; KEYSTORE_FULL.
    """
    _check_label(label)
    document = unlocked.document
    refuse_one_more(document, protector.kind)
    numbers = [entry.id.removeprefix(_PREFIX) for entry in document.protectors]
    id = f"{_PREFIX}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
    entry = new_protector_entry(document.volume_id, protector, id, label, unlocked.master)
    return _with_protectors(unlocked, (*document.protectors, entry)), id


def change_protector(unlocked: Unlocked, id: str, protector: Protector) -> Unlocked:
    """Give protector ``id`` another secret, perhaps of another kind, and a new protector key."""
    old = find_protector(unlocked.document, id)
    if protector.kind != old.kind:
        refuse_one_more(unlocked.document, protector.kind)
    new = new_protector_entry(unlocked.document.volume_id, protector, id, old.label, unlocked.master)
    return _with_protectors(
        unlocked, tuple(new if entry is old else entry for entry in unlocked.document.protectors)
    )


def restore_protector(unlocked: Unlocked, old: ProtectorEntry) -> Unlocked:
    """Undo :func:`change_protector`: *old* is the entry as it was, under the same master key."""
    entries = tuple(old if entry.id == old.id else entry for entry in unlocked.document.protectors)
    return _with_protectors(unlocked, entries)


def label_protector(unlocked: Unlocked, id: str, label: str) -> Unlocked:
    """Give protector ``id`` another label, or none. Raises TdefsError: PROTECTOR_UNKNOWN, USAGE."""
    _check_label(label)
    old = find_protector(unlocked.document, id)
    new = replace(old, label=label)
    return _with_protectors(
        unlocked, tuple(new if entry is old else entry for entry in unlocked.document.protectors)
    )


def remove_protector(unlocked: Unlocked, id: str) -> Unlocked:
    """Remove protector ``id``. Raises TdefsError: PROTECTOR_UNKNOWN, LAST_PROTECTOR."""
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
    old, master = unlocked.document, unlocked.master
    refuse_cost(replace(old, protectors=protectors))
    document = sign(replace(old, protectors=protectors, revision=old.revision + 1), master)
    return replace(unlocked, document=document, ring=open_keys(document, {master.name: master}))

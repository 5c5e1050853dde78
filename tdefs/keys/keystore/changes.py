"""What a change does to a keystore: each function takes an unlocked keystore and returns the next one.

Nothing is written here: that is done by transaction.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import AES_256_XTS, KEY_NAME, SECRET_BYTES, DataKey, MasterKey
from tdefs.keys.keystore.entries import (
    ACTIVE,
    DESTROYED,
    REVOKED,
    DataKeyEntry,
    Document,
    MasterKeyEntry,
    Place,
    ProtectorEntry,
    RoundEntry,
    Statements,
    VolumeEntry,
)
from tdefs.keys.keystore.file import Unlocked
from tdefs.keys.keystore.text import MAX_LABEL_CHARACTERS, is_label
from tdefs.keys.keystore.wrapped_keys import (
    give_master_key,
    kept_protector_key,
    new_protector_entry,
    new_round_entry,
    new_volume_entry,
    now,
    open_history_key,
    open_keys,
    sign,
    wrap_history_key,
    wrap_round,
)
from tdefs.keys.limits import refuse_cost, refuse_one_more
from tdefs.keys.protectors.base import Protector

_Entry = TypeVar("_Entry")

# --- data keys


def find_data_key(document: Document, name: str) -> DataKeyEntry:
    """Return the entry of data key *name*.

    :raises TdefsError: DATA_KEY_UNKNOWN.
    """
    for entry in document.data_keys:
        if entry.name == name:
            return entry
    raise TdefsError(
        Exit.DATA_KEY_UNKNOWN,
        f"the keystore has no data key {name!a}",
        detail=f"it has {', '.join(entry.name for entry in document.data_keys)}",
        hint="'tdefs key list' shows them",
    )


def chosen_rounds(entry: DataKeyEntry, number: int | None) -> list[RoundEntry]:
    """Return the round with this *number*, or all rounds for ``None``.

    :raises TdefsError: DATA_KEY_UNKNOWN.
    """
    found = [one for one in entry.rounds if number in (None, one.round)]
    if not found:
        raise TdefsError(
            Exit.DATA_KEY_UNKNOWN,
            f"data key {entry.name} has no round {number}",
            detail=f"it has the rounds {', '.join(str(one.round) for one in entry.rounds)}",
        )
    return found


def create_data_key(unlocked: Unlocked, name: str) -> Unlocked:
    """Add data key *name* with its round 1.

    :raises TdefsError: USAGE, DATA_KEY_EXISTS.
    """
    if not KEY_NAME.fullmatch(name):
        raise TdefsError(
            Exit.USAGE,
            f"{name!a} is no name for a data key",
            hint="a name is a lower-case letter, then up to 30 of a-z, 0-9 and _, such as dk_2",
        )
    document = unlocked.document
    if any(entry.name == name for entry in document.data_keys):
        raise TdefsError(
            Exit.DATA_KEY_EXISTS,
            f"the keystore has a data key {name} already",
            hint=f"'tdefs key rotate {name}' gives it a new round",
        )
    key = DataKey(name, 1, AES_256_XTS, os.urandom(SECRET_BYTES))
    entry = DataKeyEntry(name, False, (new_round_entry(document.volume_id, key, unlocked.master),))
    return _changed(unlocked, data_keys=(*document.data_keys, entry))


def rotate_data_key(unlocked: Unlocked, name: str) -> Unlocked:
    """Start a new round of *name*, which new files use.

    :raises TdefsError: DATA_KEY_UNKNOWN.
    """
    entry = find_data_key(unlocked.document, name)
    last = entry.rounds[-1]
    key = DataKey(name, last.round + 1, last.algorithm, os.urandom(SECRET_BYTES))
    new = new_round_entry(unlocked.document.volume_id, key, unlocked.master)
    return _with_rounds(unlocked, entry, (*entry.rounds, new))


def revoke_rounds(unlocked: Unlocked, name: str, number: int | None = None) -> Unlocked:
    """Revoke one round of *name*, or all: no new file may use them. Rounds that are revoked stay as they are.

    The default data key keeps at least one active round: without one no file could be created.

    :raises TdefsError: DATA_KEY_UNKNOWN, DATA_KEY_NEEDED.
    """
    entry = find_data_key(unlocked.document, name)
    chosen = {one.round for one in chosen_rounds(entry, number) if one.state == ACTIVE}
    if entry.default and chosen >= {one.round for one in entry.rounds if one.state == ACTIVE}:
        raise TdefsError(
            Exit.DATA_KEY_NEEDED,
            f"data key {name} is the default and would have no active round, so no file could be created",
            hint=f"'tdefs key rotate {name}' first, then revoke the old round with --round",
        )
    time = now()
    return _with_rounds(
        unlocked,
        entry,
        (replace(one, state=REVOKED, revoked=time) if one.round in chosen else one for one in entry.rounds),
    )


def destroy_rounds(unlocked: Unlocked, name: str, number: int | None = None) -> Unlocked:
    """Drop the key of one revoked round of *name*, or of all: files under it are unreadable for ever.

    The caller checks whether files use it.

    :raises TdefsError: DATA_KEY_UNKNOWN; DATA_KEY_NEEDED for a round that is active, since new files could use it
        meanwhile.
    """
    entry = find_data_key(unlocked.document, name)
    chosen = chosen_rounds(entry, number)
    active = [one.round for one in chosen if one.state == ACTIVE]
    if active:
        raise TdefsError(
            Exit.DATA_KEY_NEEDED,
            f"round {active[0]} of data key {name} is active, so new files may use it",
            hint=f"revoke it first: tdefs key revoke {name} --round {active[0]}",
        )
    time = now()

    def destroyed(one: RoundEntry) -> RoundEntry:
        if one not in chosen or one.state == DESTROYED:
            return one
        return replace(one, state=DESTROYED, destroyed=time, wrapped_by=None, wrapped=None)

    return _with_rounds(unlocked, entry, map(destroyed, entry.rounds))


def _with_rounds(unlocked: Unlocked, old: DataKeyEntry, rounds: Iterable[RoundEntry]) -> Unlocked:
    new = replace(old, rounds=tuple(rounds))
    return _changed(unlocked, data_keys=_exchanged(unlocked.document.data_keys, old, new))


# --- the master key

#: Returns a protector's entry with a new protector key for the new master key, or None if it keeps the old one.
Renew = Callable[[ProtectorEntry, MasterKey], ProtectorEntry | None]


def rotate_master_key(unlocked: Unlocked, renew: Renew = lambda _entry, _master: None) -> Unlocked:
    """Make a new master key: every key is wrapped anew, and every protector opens the new one instead.

    No protector's secret is needed, and no data key changes. *renew* is asked for each protector.

    :raises Exception: what *renew* raises.
    """
    old, volume_id, time = unlocked.document, unlocked.document.volume_id, now()
    name = _next_name("mk_", (entry.name for entry in old.master_keys))
    master = MasterKey(name, os.urandom(SECRET_BYTES))
    keys = {(key.name, key.round): key for key in unlocked.ring}

    def for_new_master(entry: ProtectorEntry) -> ProtectorEntry:
        kept = kept_protector_key(volume_id, entry, unlocked.master)
        return give_master_key(volume_id, entry, kept, master)

    def wrapped_anew(name: str, one: RoundEntry) -> RoundEntry:
        return one if one.state == DESTROYED else wrap_round(volume_id, one, keys[name, one.round], master)

    retired = (
        replace(entry, current=False, retired=time) if entry.current else entry for entry in old.master_keys
    )
    history_key = open_history_key(volume_id, old.history, unlocked.master)
    return _changed(
        unlocked,
        master=master,
        master_keys=(*retired, MasterKeyEntry(name, time, current=True)),
        protectors=tuple(renew(entry, master) or for_new_master(entry) for entry in old.protectors),
        data_keys=tuple(
            replace(entry, rounds=tuple(wrapped_anew(entry.name, one) for one in entry.rounds))
            for entry in old.data_keys
        ),
        history=wrap_history_key(volume_id, old.history, history_key, master),
    )


# --- protectors


def find_protector(document: Document, id: str) -> ProtectorEntry:
    """Return the entry of protector *id*.

    :raises TdefsError: PROTECTOR_UNKNOWN.
    """
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
    """Add *protector*; return its id, too.

    :raises TdefsError: USAGE for a bad label; KEYSTORE_FULL; and what the protector raises.
    """
    _check_label(label)
    document = unlocked.document
    refuse_one_more(document, protector.kind)
    id = _next_name("pr_", (entry.id for entry in document.protectors))
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
    return _with_protectors(unlocked, _exchanged(document.protectors, old, new))


def restore_protector(unlocked: Unlocked, old: ProtectorEntry) -> Unlocked:
    """Undo :func:`change_protector`: *old* is the entry as it was, under the same master key."""
    new = find_protector(unlocked.document, old.id)
    return _with_protectors(unlocked, _exchanged(unlocked.document.protectors, new, old))


def label_protector(unlocked: Unlocked, id: str, label: str) -> Unlocked:
    """Give protector *id* another label, or none.

    :raises TdefsError: PROTECTOR_UNKNOWN, USAGE.
    """
    _check_label(label)
    old = find_protector(unlocked.document, id)
    return _with_protectors(unlocked, _exchanged(unlocked.document.protectors, old, replace(old, label=label)))


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
    return _changed(unlocked, protectors=protectors)


# --- volumes


def find_volume(document: Document, id: str) -> VolumeEntry:
    """Return the entry of volume *id*.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    for entry in document.volumes:
        if entry.id == id:
            return entry
    raise TdefsError(
        Exit.VOLUME_UNKNOWN,
        f"the keystore knows no volume {id!a}",
        detail=f"it knows {', '.join(entry.id for entry in document.volumes) or 'none'}",
        hint="'tdefs volume list' shows them",
    )


def add_volume(unlocked: Unlocked, place: Place, may: Statements) -> tuple[Unlocked, str]:
    """Register the volume at *place*, and what it *may* do; return its id, too."""
    volumes = unlocked.document.volumes
    id = _next_name("vol_", (entry.id for entry in volumes))
    return _changed(unlocked, volumes=(*volumes, new_volume_entry(id, place, may))), id


def move_volume(unlocked: Unlocked, id: str, place: Place) -> Unlocked:
    """Note that volume *id* is at *place* now.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    return _changed(unlocked, volumes=moved(unlocked.document, id, place).volumes)


def moved(document: Document, id: str, place: Place) -> Document:
    """Return *document* with volume *id* at *place*; its MAC is still to be made.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(document, id)
    new = replace(old, path=place.path, device=place.device, inode=place.inode)
    return replace(document, volumes=_exchanged(document.volumes, old, new))


def restate_volume(unlocked: Unlocked, id: str, may: Statements) -> Unlocked:
    """Note what volume *id* *may* do from now on.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(unlocked.document, id)
    return _changed(unlocked, volumes=_exchanged(unlocked.document.volumes, old, replace(old, **vars(may))))


def forget_volume(unlocked: Unlocked, id: str) -> Unlocked:
    """Remove volume *id* from those that are known.

    :raises TdefsError: VOLUME_UNKNOWN.
    """
    old = find_volume(unlocked.document, id)
    return _changed(unlocked, volumes=tuple(entry for entry in unlocked.document.volumes if entry is not old))


# --- what they have in common


def _next_name(prefix: str, names: Iterable[str]) -> str:
    """Return *prefix* with the number after the highest one among *names*."""
    numbers = [name.removeprefix(prefix) for name in names]
    return f"{prefix}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"


def _exchanged(entries: tuple[_Entry, ...], old: _Entry, new: _Entry) -> tuple[_Entry, ...]:
    return tuple(new if entry is old else entry for entry in entries)


def _changed(unlocked: Unlocked, *, master: MasterKey | None = None, **members: Any) -> Unlocked:
    """Return the next revision of the keystore, with these *members* of its document, under *master*'s MAC."""
    old = unlocked.document
    master = master or unlocked.master
    document = sign(replace(old, revision=old.revision + 1, **members), master)
    return replace(unlocked, document=document, master=master, ring=open_keys(document, {master.name: master}))

"""What a change of keys does: each function takes an unlocked keystore and returns the next one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import AES_256_XTS, KEY_NAME, SECRET_BYTES, DataKey, MasterKey
from tdefs.keys.keystore.changes import changed, exchanged, find, next_name
from tdefs.keys.keystore.entries import (
    ACTIVE,
    DESTROYED,
    REVOKED,
    DataKeyEntry,
    Document,
    MasterKeyEntry,
    ProtectorEntry,
    RoundEntry,
)
from tdefs.keys.keystore.file import Unlocked
from tdefs.keys.keystore.wrapped_keys import (
    give_master_key,
    kept_protector_key,
    new_round_entry,
    now,
    open_history_key,
    wrap_history_key,
    wrap_round,
)
from tdefs.text import shortened

# --- data keys


def find_data_key(document: Document, name: str) -> DataKeyEntry:
    """Return the entry of data key *name*.

    :raises TdefsError: DATA_KEY_UNKNOWN.
    """
    by_name = {entry.name: entry for entry in document.data_keys}
    return find(by_name, name, Exit.DATA_KEY_UNKNOWN, "data key", "'tdefs key list' shows them")


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
            f'"{shortened(name)}" is not a name for a data key',
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
    return changed(unlocked, data_keys=(*document.data_keys, entry))


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
    return changed(unlocked, data_keys=exchanged(unlocked.document.data_keys, old, new))


# --- the master key

#: Returns a protector's entry with a new protector key for the new master key, or None if it keeps the old one.
Renew = Callable[[ProtectorEntry, MasterKey], ProtectorEntry | None]


def rotate_master_key(unlocked: Unlocked, renew: Renew = lambda _entry, _master: None) -> Unlocked:
    """Make a new master key: every key is wrapped anew, and every protector opens the new one instead.

    No protector's secret is needed, and no data key changes. *renew* is asked for each protector.

    :raises Exception: what *renew* raises.
    """
    old, volume_id, time = unlocked.document, unlocked.document.volume_id, now()
    name = next_name("mk_", (entry.name for entry in old.master_keys))
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
    return changed(
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

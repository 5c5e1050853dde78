"""Changes of a keystore's keys: each takes an unlocked keystore and returns the new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from tdefs.errors import Exit, TdefsError
from tdefs.keys.document import (
    ACTIVE,
    DESTROYED,
    REVOKED,
    DataKeyEntry,
    Document,
    MasterKeyEntry,
    ProtectorEntry,
    RoundEntry,
)
from tdefs.keys.hierarchy import AES_256_XTS, ALGORITHMS, KEY_NAME, SECRET_BYTES, DataKey, MasterKey
from tdefs.keys.keystore import Unlocked
from tdefs.keys.seal import (
    give_master_key,
    kept_protector_key,
    new_round_entry,
    now,
    open_history_key,
    open_keys,
    sign,
    wrap_history_key,
    wrap_round,
)

_PREFIX = "mk_"


def find_data_key(document: Document, name: str) -> DataKeyEntry:
    """Return the entry of data key ``name``. Raises TdefsError(DATA_KEY_UNKNOWN)."""
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
    """Return the round with this number, or all of them. Raises TdefsError(DATA_KEY_UNKNOWN)."""
    found = [one for one in entry.rounds if number in (None, one.round)]
    if not found:
        raise TdefsError(
            Exit.DATA_KEY_UNKNOWN,
            f"data key {entry.name} has no round {number}",
            detail=f"it has the rounds {', '.join(str(one.round) for one in entry.rounds)}",
        )
    return found


def create_data_key(
    unlocked: Unlocked, name: str, *, algorithm: str = AES_256_XTS, master_key: str | None = None
) -> Unlocked:
    """Add data key ``name`` with its round 1, wrapped by the current master key, which is the only choice.

    Raises TdefsError: USAGE, DATA_KEY_EXISTS.
    """
    if not KEY_NAME.fullmatch(name):
        raise TdefsError(
            Exit.USAGE,
            f"{name!a} is no name for a data key",
            hint="a name is a lower-case letter, then up to 30 of a-z, 0-9 and _, such as dk_2",
        )
    if algorithm not in ALGORITHMS:
        raise TdefsError(
            Exit.USAGE, f"unknown algorithm {algorithm!a}", hint=f"one of: {', '.join(sorted(ALGORITHMS))}"
        )
    if master_key not in (None, unlocked.master.name):
        raise TdefsError(
            Exit.USAGE,
            f"master key {master_key!a} cannot protect a data key",
            detail=f"the current master key is {unlocked.master.name}",
        )
    document = unlocked.document
    if any(entry.name == name for entry in document.data_keys):
        raise TdefsError(
            Exit.DATA_KEY_EXISTS,
            f"the keystore has a data key {name} already",
            hint=f"'tdefs key rotate {name}' gives it a new round",
        )
    key = DataKey(name, 1, algorithm, os.urandom(SECRET_BYTES))
    entry = DataKeyEntry(name, False, (new_round_entry(document.volume_id, key, unlocked.master),))
    return _with_data_keys(unlocked, (*document.data_keys, entry))


def rotate_data_key(unlocked: Unlocked, name: str) -> Unlocked:
    """Start a new round of ``name``, which new files use. Raises TdefsError(DATA_KEY_UNKNOWN)."""
    entry = find_data_key(unlocked.document, name)
    last = entry.rounds[-1]
    key = DataKey(name, last.round + 1, last.algorithm, os.urandom(SECRET_BYTES))
    new = new_round_entry(unlocked.document.volume_id, key, unlocked.master)
    return _replace_rounds(unlocked, entry, (*entry.rounds, new))


def revoke_rounds(unlocked: Unlocked, name: str, number: int | None = None) -> Unlocked:
    """Revoke one round of ``name``, or all: no new file may use them. Revoked ones stay as they are.

    The default data key keeps at least one active round: without one no file could be created.
    Raises TdefsError: DATA_KEY_UNKNOWN, DATA_KEY_NEEDED.
    """
    entry = find_data_key(unlocked.document, name)
    chosen = {one.round for one in chosen_rounds(entry, number) if one.state == ACTIVE}
    if entry.default and chosen >= {one.round for one in entry.rounds if one.state == ACTIVE}:
        raise TdefsError(
            Exit.DATA_KEY_NEEDED,
            f"data key {name} is the default and would have no active round, so no file could be created",
            hint=f"'tdefs key rotate {name}' first, then revoke the old round with --round",
        )
    return _change_rounds(
        unlocked, entry, lambda one: replace(one, state=REVOKED, revoked=now()) if one.round in chosen else one
    )


def destroy_rounds(unlocked: Unlocked, name: str, number: int | None = None) -> Unlocked:
    """Drop the key of one revoked round of ``name``, or of all: files under it are unreadable for ever.

    Whether files use it is the caller's to check. Raises TdefsError: DATA_KEY_UNKNOWN; DATA_KEY_NEEDED for a
    round that is active, since new files could use it meanwhile.
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
    numbers = {one.round for one in chosen}

    def destroyed(one: RoundEntry) -> RoundEntry:
        if one.round not in numbers or one.state == DESTROYED:
            return one
        return replace(one, state=DESTROYED, destroyed=now(), wrapped_by=None, wrapped=None)

    return _change_rounds(unlocked, entry, destroyed)


#: Returns a protector's entry with a new protector key for the new master key, or None if it keeps the old one.
Renew = Callable[[ProtectorEntry, MasterKey], ProtectorEntry | None]


def rotate_master_key(unlocked: Unlocked, renew: Renew = lambda _entry, _master: None) -> Unlocked:
    """Make a new master key: every key is wrapped anew, and every protector opens the new one instead.

    No protector's secret is needed, and no data key changes. ``renew`` is asked for each protector. What it raises
    is raised.
    """
    old, volume_id, time = unlocked.document, unlocked.document.volume_id, now()
    numbers = [entry.name.removeprefix(_PREFIX) for entry in old.master_keys]
    name = f"{_PREFIX}{1 + max((int(number) for number in numbers if number.isdecimal()), default=0)}"
    master = MasterKey(name, os.urandom(SECRET_BYTES))
    keys = {(key.name, key.round): key for key in unlocked.ring}
    retired = (
        replace(entry, current=False, retired=time) if entry.current else entry for entry in old.master_keys
    )
    anchor = old.history
    history_key = open_history_key(volume_id, anchor, unlocked.master)
    anchor = wrap_history_key(volume_id, anchor, history_key, master)
    document = replace(
        old,
        revision=old.revision + 1,
        master_keys=(*retired, MasterKeyEntry(name, time, current=True)),
        protectors=tuple(
            renew(entry, master)
            or give_master_key(volume_id, entry, kept_protector_key(volume_id, entry, unlocked.master), master)
            for entry in old.protectors
        ),
        data_keys=tuple(
            replace(
                entry,
                rounds=tuple(
                    one
                    if one.state == DESTROYED
                    else wrap_round(volume_id, one, keys[entry.name, one.round], master)
                    for one in entry.rounds
                ),
            )
            for entry in old.data_keys
        ),
        history=anchor,
    )
    return _resealed(unlocked, document, master)


def _change_rounds(
    unlocked: Unlocked, entry: DataKeyEntry, change: Callable[[RoundEntry], RoundEntry]
) -> Unlocked:
    return _replace_rounds(unlocked, entry, tuple(change(one) for one in entry.rounds))


def _replace_rounds(unlocked: Unlocked, entry: DataKeyEntry, rounds: tuple[RoundEntry, ...]) -> Unlocked:
    new = replace(entry, rounds=rounds)
    return _with_data_keys(unlocked, tuple(new if one is entry else one for one in unlocked.document.data_keys))


def _with_data_keys(unlocked: Unlocked, data_keys: tuple[DataKeyEntry, ...]) -> Unlocked:
    old = unlocked.document
    return _resealed(unlocked, replace(old, data_keys=data_keys, revision=old.revision + 1), unlocked.master)


def _resealed(unlocked: Unlocked, document: Document, master: MasterKey) -> Unlocked:
    document = sign(document, master)
    ring = open_keys(document, {master.name: master})
    return replace(unlocked, document=document, master=master, ring=ring)

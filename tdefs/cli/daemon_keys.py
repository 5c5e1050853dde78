"""Telling the daemon of a mounted volume about changed keys, so that it uses them at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tdefs.errors import Exit, TdefsError
from tdefs.fs.control import StrangerError, ask
from tdefs.keys.hierarchy import DataKey, KeyRing
from tdefs.keys.ring_message import RingRefusedError, seal_ring
from tdefs.volume import Volume, is_in_use

# a mount that is just being made answers soon
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2


def daemon_status(volume: Volume) -> dict[str, Any] | None:
    """Return what the daemon of *volume* says of itself; ``None`` if the volume is not mounted.

    :raises TdefsError: DAEMON_NOT_TOLD if it does not answer.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while is_in_use(volume):
        status = ask(volume, "status")
        if status is not None:
            return status
        if time.monotonic() > deadline:
            raise _not_told("it does not answer this user")
        time.sleep(_PAUSE_SECONDS)
    return None


def tell_daemon(volume: Volume, keystore: Path, old: KeyRing, new: KeyRing) -> bool:
    """Have the daemon of *volume* use the keys *new*; return whether there is one.

    What answers is taken for the daemon only if its user may have read the *keystore*. Who owns the volume's root
    can put a socket in the daemon's place, and would get all keys by saying that it holds none, or leaked ones.

    :param old: the keys of before the change, by which it knows us.
    :raises TdefsError: DAEMON_NOT_TOLD.
    """
    status = daemon_status(volume)
    if status is None:
        return False
    held = {(key["name"], key["round"]) for key in status.get("data_keys", ())}
    known: dict[tuple[str, int], DataKey] = {(key.name, key.round): key for ring in (old, new) for key in ring}
    users = {0, os.geteuid(), keystore.stat().st_uid}
    try:
        message = seal_ring(new, [known[one] for one in held if one in known])
        answer = ask(volume, "keys", only_of=users, **message)
    except (RingRefusedError, StrangerError) as error:
        raise _not_told(str(error)) from None
    if answer is None or answer.get("keystore_revision") != new.revision:
        reason = answer.get("refused") if answer else None
        raise _not_told(f"it refused the new keys: {reason}" if reason else "it did not answer")
    return True


def _not_told(detail: str) -> TdefsError:
    return TdefsError(
        Exit.DAEMON_NOT_TOLD,
        "the daemon of the mounted volume could not be told of the keys, and goes on with those it has",
        detail=detail,
        hint="try 'tdefs key reload' as root or as the daemon's user; else unmount, and mount again",
    )

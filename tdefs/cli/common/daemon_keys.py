"""Sending changed keys to the daemons of mounted volumes, so that they use them at once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tdefs.cli.common.keystore_users import is_same_file
from tdefs.control import StrangerError, ask, ask_status
from tdefs.daemon.status import DaemonStatus
from tdefs.errors import DaemonNotToldError, TdefsError
from tdefs.keys.hierarchy import DataKey, KeyRing
from tdefs.keys.ring_message import RingRefusedError, encrypt_ring
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.lock import is_in_use

# a mount that is being made now answers soon
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.2


class _NotToldError(Exception):
    """A daemon did not get the keys; the text says why."""


def daemon_status(volume: Volume) -> DaemonStatus | None:
    """Return the status of the daemon of *volume*; ``None`` if the volume is not mounted.

    :raises TdefsError: DAEMON_NOT_TOLD if it does not answer.
    """
    try:
        return _status(volume, _PATIENCE_SECONDS)
    except _NotToldError as error:
        raise _not_told([(volume, str(error))]) from None


def tell_daemons(
    volumes: Iterable[Volume],
    keystore: Path,
    old: KeyRing,
    new: KeyRing,
    *,
    patience: float | None = None,
    silent: bool = False,
) -> list[Volume]:
    """Send the keys *new* to each daemon of *volumes* that uses *keystore*; return and print which ones got them.

    A process counts as the daemon only if its user may have read the *keystore*. The owner of the volume's
    directory can put a socket in the daemon's place. It could claim to hold no keys, or leaked ones, and would get
    all keys.

    :param old: the keys before the change; they prove to the daemons that this process may send keys.
    :param patience: for how many seconds to wait for a mount that is being made; ``None``: the usual time.
    :param silent: do not print which daemons got the keys.
    :raises TdefsError: DAEMON_NOT_TOLD, after all were tried; it names those that did not get the keys.
    """
    told: list[Volume] = []
    refused: list[tuple[Volume, str]] = []
    for volume in volumes:
        try:
            if not _tell(volume, keystore, old, new, _PATIENCE_SECONDS if patience is None else patience):
                continue
        except _NotToldError as error:
            refused.append((volume, str(error)))
            continue
        told.append(volume)
        if not silent:
            place = printable(str(volume.backing))
            print(f'tdefs: the daemon of volume "{place}" got the change', file=sys.stderr)
    if refused:
        raise _not_told(refused)
    return told


def _tell(volume: Volume, keystore: Path, old: KeyRing, new: KeyRing, patience: float) -> bool:
    status = _status(volume, patience)
    if status is None:
        return False
    other = Path(status.keystore)
    if not _may_be_same(other, keystore):
        print(
            f'tdefs: the daemon of volume "{printable(str(volume.backing))}" uses another keystore,'
            f' "{printable(str(other))}", and goes on with that',
            file=sys.stderr,
        )
        return False
    held = {(key.name, key.round) for key in status.data_keys}
    known: dict[tuple[str, int], DataKey] = {(key.name, key.round): key for ring in (old, new) for key in ring}
    users = {0, os.geteuid(), keystore.stat().st_uid}
    try:
        message = encrypt_ring(new, [known[one] for one in held if one in known])
        answer = ask(volume, "keys", only_of=users, **message)
    except (RingRefusedError, StrangerError) as error:
        raise _NotToldError(str(error)) from None
    if answer is None or answer.get("keystore_revision") != new.revision:
        reason = answer.get("refused") if answer else None
        raise _NotToldError(f"it refused the new keys: {reason}" if reason else "it did not answer")
    return True


def _may_be_same(other: Path, keystore: Path) -> bool:
    """Return whether a daemon that names *other* may use *keystore*; it may see other paths than this process."""
    try:
        return is_same_file(other, keystore)
    except OSError:
        return True


def _status(volume: Volume, patience: float) -> DaemonStatus | None:
    deadline = time.monotonic() + patience
    while is_in_use(volume):
        status = ask_status(volume)
        if status is not None:
            return status
        if time.monotonic() > deadline:
            raise _NotToldError("it does not answer this user")
        time.sleep(_PAUSE_SECONDS)
    return None


def _not_told(refused: list[tuple[Volume, str]]) -> TdefsError:
    names = ", ".join(f'"{printable(str(volume.backing))}"' for volume, _ in refused)
    one = len(refused) == 1
    return DaemonNotToldError(
        f"the {'daemon' if one else 'daemons'} of {'volume' if one else 'volumes'} {names} did not get"
        f" the keys, and {'goes on with those it has' if one else 'go on with those they have'}",
        detail="\n".join(f"{reason}" if one else f'"{volume.backing}": {reason}' for volume, reason in refused),
        hint="try 'tdefs key reload' as root or as the daemon's user; else unmount, and mount again",
    )

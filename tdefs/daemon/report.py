"""The report on one mount: ``tdefs status --json``, and the virtual file ``.tdefs/status.json``.

It has the status of the daemon, and counts of the files in the volume, which are read without the daemon.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdefs.daemon.status import DaemonStatus
from tdefs.errors import TdefsError
from tdefs.keys.keystore.entries import DESTROYED, Document
from tdefs.keys.keystore.file import load_keystore
from tdefs.mounts.users import mounts_inside
from tdefs.offline.reader import STATES, describe_all
from tdefs.volume.believed import shown
from tdefs.volume.description import Volume
from tdefs.volume.session_record import read_session

#: Members that only the daemon knows, and that are passed on as they are.
_OF_DAEMON = (
    *("keystore_revision", "policy_digest", "log_file", "memory_locked", "watchdog", "read_only"),
    *("reserve_spared", "tampering", "page_cipher", "known_inodes", "open_handles"),
)
_BY_OPERATION = ("requests", "failures", "bytes", "latency")


def report(volume: Volume, mountpoint: Path, status: DaemonStatus | None) -> dict[str, Any]:
    """Return the JSON object that describes a mount; its keys are part of the interface.

    The header of each file in the volume is read, which takes seconds for very many files.

    :param status: ``None`` if the daemon does not answer. Then the members that only it knows are ``None`` or
        empty.
    """
    session = read_session(volume)
    document = _document(Path(status.keystore) if status is not None else volume.keystore)
    believed = shown(volume, document)
    destroyed = dict.fromkeys(status.destroyed_rounds if status is not None else ())
    states: Counter[str] = Counter()
    rounds: Counter[tuple[str, int, str]] = Counter()
    for found in describe_all(volume, destroyed, believed):
        states[found.state] += 1
        if found.data_key is not None and found.round is not None and found.algorithm is not None:
            rounds[found.data_key, found.round, found.algorithm] += 1
    key_states: dict[tuple[str, int], str | None] = {}
    for key in status.data_keys if status is not None else ():
        rounds[key.name, key.round, key.algorithm] += 0
        key_states[key.name, key.round] = key.state
    key_states |= dict.fromkeys(destroyed, DESTROYED)
    known = status.to_json() if status is not None else {}
    return {
        "mountpoint": str(mountpoint),
        "mounts_inside": inside(mountpoint),
        "backing": str(volume.backing),
        "volume_id": volume.volume_id.hex(),
        "daemon_answers": status is not None,
        "pid": known.get("pid", session.pid if session else None),
        "since": None if status is None else _local_time(status.started),
        "keystore": known.get("keystore", str(volume.keystore)),
        "policy": known.get("policy", believed.statements.policy or None),
        **{name: known.get(name) for name in _OF_DAEMON},
        "data_keys": [
            {
                "name": name,
                "round": number,
                "algorithm": algorithm,
                "state": key_states.get((name, number)),
                "files": files,
            }
            for (name, number, algorithm), files in sorted(rounds.items())
        ],
        "files": {state: states[state] for state in STATES},
        **{name: known.get(name, {}) for name in _BY_OPERATION},
    }


def inside(mountpoint: Path) -> list[str]:
    """Return the mount points inside *mountpoint*, in an order in which they can be unmounted."""
    return [str(inner.mountpoint) for inner in mounts_inside(mountpoint)]


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat("T", "seconds")


def _document(keystore: Path) -> Document | None:
    """Return the keystore's document, unverified; ``None`` if this user may not read it."""
    try:
        return load_keystore(keystore).document
    except TdefsError:
        return None

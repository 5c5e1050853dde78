"""``tdefs status``: what is mounted, with which keys, how many files are encrypted, and what was requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_fields, print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import add_config
from tdefs.control import ask
from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import DestroyedRounds
from tdefs.keys.keystore.entries import DESTROYED, Document
from tdefs.keys.keystore.file import load_keystore
from tdefs.mounts.known import Mount, is_dead
from tdefs.mounts.users import mounts_inside
from tdefs.offline.reader import STATES, describe_all
from tdefs.volume.believed import shown
from tdefs.volume.description import Volume, is_in_use, read_volume
from tdefs.volume.session_record import read_session

_FIELDS = (
    *(
        "mountpoint",
        "backing",
        "volume_id",
        "pid",
        "since",
        "keystore",
        "keystore_revision",
        "policy",
        "log_file",
        "memory_locked",
        "watchdog",
        "read_only",
    ),
    *("page_cipher", "known_inodes", "open_handles"),
)


def register(subparsers: Subcommands) -> None:
    """Add the command ``status``."""
    parser = subparsers.add_parser(
        "status",
        help="what is mounted: keys (no secrets), counts of encrypted and plain files, requests and failures",
        description="Says what is mounted at MOUNTPOINT. Files are counted as they are on the disk; those whose "
        "data key was destroyed are unreadable.",
    )
    add_volume(parser)
    add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice
    json: bool


def living_volume(mount: Mount) -> Volume:
    """Return the volume that is served by a mount.

    :raises TdefsError: NOT_MOUNTED if the daemon is gone.
    """
    volume = None if mount.may_be_asked and is_dead(mount.mountpoint) else read_volume(mount.backing)
    # the kernel may answer a stat() of a dead mount from its cache; the lock that a daemon holds tells for certain
    if volume is None or not is_in_use(volume):
        raise TdefsError(
            Exit.NOT_MOUNTED,
            f'the mount at "{mount.mountpoint}" is dead: its daemon is gone',
            detail="; ".join(f'mounted inside it: "{inner}"' for inner in _inside(mount.mountpoint)),
            hint="'tdefs mount' replaces it, 'tdefs umount' takes it away; the log says why the daemon ended",
        )
    return volume


def _run(_invocation: Invocation, options: _Options) -> int:
    mount = options.volume.find_mount()
    volume = living_volume(mount)
    status = gather(volume, mount.mountpoint)
    if options.json:
        print_json(status)
    else:
        _print(status)
    return Exit.OK


def gather(volume: Volume, mountpoint: Path) -> dict[str, Any]:
    """Return the JSON object that describes a mount; its keys are part of the interface.

    What only the daemon knows is ``None``, or empty, if it does not answer.
    """
    answer = ask(volume, "status")
    daemon = answer or {}
    session = read_session(volume)
    states: Counter[str] = Counter()
    rounds: Counter[tuple[str, int, str]] = Counter()
    destroyed: DestroyedRounds = dict.fromkeys(
        (name, number) for name, number in daemon.get("destroyed_rounds", ())
    )
    document = _document(Path(daemon.get("keystore", volume.keystore)))
    believed = shown(volume, document)
    for found in describe_all(volume, destroyed, believed):
        states[found.state] += 1
        if found.data_key is not None and found.round is not None and found.algorithm is not None:
            rounds[found.data_key, found.round, found.algorithm] += 1
    key_states: dict[tuple[str, int], str | None] = {}
    for key in daemon.get("data_keys", ()):
        rounds[key["name"], key["round"], key["algorithm"]] += 0
        key_states[key["name"], key["round"]] = key.get("state")
    key_states |= dict.fromkeys(destroyed, DESTROYED)
    started = daemon.get("started")
    return {
        "mountpoint": str(mountpoint),
        "mounts_inside": _inside(mountpoint),
        "backing": str(volume.backing),
        "volume_id": volume.volume_id.hex(),
        "daemon_answers": answer is not None,
        "pid": daemon.get("pid", session.pid if session else None),
        "since": None
        if started is None
        else datetime.fromtimestamp(started, UTC).astimezone().isoformat("T", "seconds"),
        "keystore": daemon.get("keystore", str(volume.keystore)),
        "keystore_revision": daemon.get("keystore_revision"),
        "policy": daemon.get("policy", believed.statements.policy or None),
        "log_file": daemon.get("log_file"),
        "memory_locked": daemon.get("memory_locked"),
        "watchdog": daemon.get("watchdog"),
        "read_only": daemon.get("read_only"),
        "tampering": daemon.get("tampering"),
        "page_cipher": daemon.get("page_cipher"),
        "known_inodes": daemon.get("known_inodes"),
        "open_handles": daemon.get("open_handles"),
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
        "requests": daemon.get("requests", {}),
        "failures": daemon.get("failures", {}),
    }


def _document(keystore: Path) -> Document | None:
    """Return what the keystore contains, unverified; ``None`` where this user may not read it."""
    try:
        return load_keystore(keystore).document
    except TdefsError:
        return None


def _tampering(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what of the volume is not as the last unmount left it."""
    if found.get("lost"):
        yield "manifest", found["lost"]
    if found.get("older_than"):
        yield "older copy", f"the keystore knows of a newer one, with manifest {found['older_than']}"
    for one in found.get("differences", ()):
        yield "not as left", f"{one['path']}: {one['what']}"
    if (more := found.get("count", 0) - len(found.get("differences", ()))) > 0:
        yield "not as left", f"and {more} more: 'tdefs accept --list'"


def _inside(mountpoint: Path) -> list[str]:
    """Return the mount points of what is mounted inside, in an order in which they can be unmounted."""
    return [str(inner.mountpoint) for inner in mounts_inside(mountpoint)]


def _print(status: dict[str, Any]) -> None:
    if not status["daemon_answers"]:
        print_line("the daemon does not answer this user: what only it knows is missing")
        print_line()
    shown = {True: "yes", False: "no"}
    print_fields(
        (name.replace("_", " "), shown[value] if isinstance(value := status[name], bool) else value)
        for name in _FIELDS
    )
    print_fields(_tampering(status["tampering"] or {}))
    print_fields(("mounted inside", inner) for inner in status["mounts_inside"])
    print_line()
    keys = [
        (key["name"], key["round"], key["algorithm"], key["state"], key["files"]) for key in status["data_keys"]
    ]
    print_table(("data key", "round", "algorithm", "state", "files"), keys, numbers=("round", "files"))
    print_line()
    print_table(("files", "count"), list(status["files"].items()), numbers=("count",))
    if status["requests"]:
        failures = status["failures"]
        rows = [(name, count, failures.get(name, 0)) for name, count in status["requests"].items()]
        print_line()
        print_table(("request", "count", "failures"), rows, numbers=("count", "failures"))

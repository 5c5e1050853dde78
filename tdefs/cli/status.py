"""``tdefs status``: what is mounted, with which keys, how many files are encrypted, and what was requested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_fields, print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import add_config
from tdefs.control import ask_status
from tdefs.daemon.report import inside, report
from tdefs.daemon.status import DaemonStatus
from tdefs.errors import Exit, TdefsError
from tdefs.fuse.measured import Latency
from tdefs.manifest.found import Tampering
from tdefs.mounts.known import Mount, is_dead
from tdefs.volume.description import Volume, read_volume
from tdefs.volume.lock import is_in_use
from tdefs.volume.policy_choice import shown as shown_digest

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
        "policy_digest",
        "log_file",
        "memory_locked",
        "watchdog",
        "read_only",
    ),
    *("page_cipher", "known_inodes", "open_handles"),
)
_REQUEST_HEADERS = ("request", "count", "failures", "bytes", "mean µs", "p50 µs", "p99 µs")


def register(subparsers: Subcommands) -> None:
    """Add the command ``status``."""
    parser = subparsers.add_parser(
        "status",
        help="show a mount: its keys, its files, its requests and failures",
        description="Shows what is mounted. Files are counted as they are on the disk. Files whose data key was "
        "destroyed count as unreadable.",
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
    # the kernel may answer a stat() of a dead mount from its cache; the lock of the daemon is certain
    if volume is None or not is_in_use(volume):
        raise TdefsError(
            Exit.NOT_MOUNTED,
            f'the mount at "{mount.mountpoint}" is dead: its daemon is gone',
            detail="; ".join(f'mounted inside it: "{inner}"' for inner in inside(mount.mountpoint)),
            hint="'tdefs mount' replaces it, 'tdefs umount' takes it away; the log says why the daemon ended",
        )
    return volume


def _run(_invocation: Invocation, options: _Options) -> int:
    mount = options.volume.find_mount()
    volume = living_volume(mount)
    status = ask_status(volume)
    found = report(volume, mount.mountpoint, status)
    if options.json:
        print_json(found)
    else:
        _print(found, status)
    return Exit.OK


def _tampering(found: Tampering) -> Iterator[tuple[str, str]]:
    """Yield which files of the volume are not as the last unmount left them."""
    if found.lost:
        yield "manifest", found.lost
    if found.older_than:
        yield "older copy", f"the keystore knows of a newer one, with manifest {found.older_than}"
    for one in found.differences:
        yield "not as left", f"{one.path}: {one.what}"
    if (more := found.count - len(found.differences)) > 0:
        yield "not as left", f"and {more} more: 'tdefs accept --list'"


def _requests(status: DaemonStatus) -> Iterator[tuple[str | int | None, ...]]:
    """Yield for each operation how often it was requested, how often it failed, and how long it took."""
    for name, count in status.requests.items():
        took = status.latency.get(name, Latency())
        times = (
            (round(took.mean_us), took.percentile_us(50), took.percentile_us(99)) if took.count else (None,) * 3
        )
        yield name, count, status.failures.get(name, 0), status.bytes.get(name), *times


def _print(found: dict[str, Any], status: DaemonStatus | None) -> None:
    if status is None:
        print_line("the daemon does not answer this user: what only the daemon knows is missing")
        print_line()
    yes_or_no = {True: "yes", False: "no"}
    fields = {name: found[name] for name in _FIELDS}
    if fields["policy_digest"] is not None:
        fields["policy_digest"] = shown_digest(fields["policy_digest"])
    print_fields(
        (name.replace("_", " "), yes_or_no[value] if isinstance(value, bool) else value)
        for name, value in fields.items()
    )
    if status is not None and status.tampering is not None:
        print_fields(_tampering(status.tampering))
    print_fields(("mounted inside", inner) for inner in found["mounts_inside"])
    print_line()
    keys = [
        (key["name"], key["round"], key["algorithm"], key["state"], key["files"]) for key in found["data_keys"]
    ]
    print_table(("data key", "round", "algorithm", "state", "files"), keys, numbers=("round", "files"))
    print_line()
    print_table(("files", "count"), list(found["files"].items()), numbers=("count",))
    if status is not None and status.requests:
        print_line()
        print_table(_REQUEST_HEADERS, list(_requests(status)), numbers=_REQUEST_HEADERS[1:])
        print_line("p50: half of the requests took less time; p99: 99 of 100 took less time")

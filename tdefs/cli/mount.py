"""``tdefs mount``: unlock a volume and serve it."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from logging.handlers import SysLogHandler
from pathlib import Path

from tdefs.cli.background import run_in_background
from tdefs.cli.log_file import LogFile, default_log
from tdefs.cli.unlock import add_keystore_arguments, unlock
from tdefs.config import LONGEST_WATCHDOG, load_config
from tdefs.errors import Exit, TdefsError
from tdefs.fs.calls import SystemCalls
from tdefs.fs.limits import low_limits
from tdefs.fs.mount_place import refuse_exchangeable
from tdefs.fs.mount_users import places_of
from tdefs.fs.mounts import DEAD, detach_dead, is_dead, provide_connections, tdefs_mounts
from tdefs.fs.read_only import ReadOnlyCalls, is_read_only
from tdefs.fs.recovery import empty_unfinished_files
from tdefs.fs.session import MountRequest, run_session
from tdefs.host import keep_freed_memory, lock_memory, raise_file_limit, reserve_memory, tell_service_manager
from tdefs.keys.hierarchy import KeyRing
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume import (
    Volume,
    VolumeLock,
    allow_plain_files,
    is_running,
    read_session,
    read_volume,
    refuse_strangers_volume,
    was_left_clean,
)
from tdefs.way import follow

log = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SYSTEM_LOG = Path("/dev/log")
# Between the record of a session and its mount.
_MOUNTING_SECONDS = 1.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``mount``."""
    parser = subparsers.add_parser(
        "mount",
        help="unlock a volume and serve it; returns when the mount serves",
        description="Mounts a volume. The daemon runs as the user who calls this: as the cluster's own user, or "
        "as root, in which case every user's access is checked against the files' owners and modes.",
    )
    parser.add_argument("backing", metavar="BACKING", type=Path, help="the directory that holds ciphertext")
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        type=Path,
        nargs="?",
        help="PGDATA, or a directory above it; default: what the configuration says",
    )
    add_keystore_arguments(parser)
    parser.add_argument("--policy", metavar="FILE", type=Path, help="instead of the one the volume remembers")
    parser.add_argument(
        "-f",
        "--foreground",
        action="store_true",
        help="stay in the foreground, log to stderr; tells systemd when the mount serves",
    )
    parser.add_argument(
        "-o",
        dest="options",
        metavar="OPTIONS",
        action="append",
        default=[],
        help='mount options, separated by commas; with "ro", and on a read-only file system, nothing is changed '
        "in BACKING: no recovery, no log, no record of the session",
    )
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        type=Path,
        help="default: a file for each volume in /var/log/tdefs, as root; BACKING/.tdefs/log as another user; the "
        "system's log for a volume that is mounted read-only",
    )
    parser.add_argument(
        "--watchdog",
        metavar="SECONDS",
        type=_seconds,
        help="end a daemon that has not answered for so long: abort its connection, kill it; default: 0, never",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    config = load_config(args.config)
    settings = config.for_backing(args.backing)
    volume = read_volume(args.backing)
    policy_file = _given(args.policy, settings.policy) or volume.policy
    policy = load_policy(policy_file) if policy_file else Policy.everything()
    # like all paths before the daemon leaves the directory that relative ones are meant in
    keystore = _given(args.keystore, settings.keystore) or volume.keystore
    options = (*_options(args.options), *settings.options)
    read_only = is_read_only(volume.backing) or "ro" in options
    if not read_only:
        refuse_strangers_volume(volume)
    lock = VolumeLock(volume)
    _acquire(lock, volume)
    try:
        # not before: a dead mount that this process finds may be another one's fresh mount a moment later
        mountpoint = _prepare_mountpoint(_given(args.mountpoint, settings.mountpoint), volume)
        ring = unlock(args, volume)
        _check_key_names(policy, ring, policy_file)
        log_file = None if args.foreground else _given(args.log_file, settings.log_file)
        if log_file is None and not args.foreground and not read_only:
            log_file = default_log(volume.log_file)
            if log_file is None:
                _tell_of_no_log(volume)
        watchdog = settings.watchdog if args.watchdog is None else args.watchdog
        if watchdog and (reason := provide_connections()):
            print(
                f"tdefs: warning: the watchdog cannot work\nDETAIL:  {reason}\n"
                "HINT:    as root: mount -t fusectl fusectl /sys/fs/fuse/connections",
                file=sys.stderr,
            )
        raise_file_limit()
        keep_freed_memory()
        low = low_limits()
        reserve_memory()

        def work(ready: Callable[[], None]) -> None:
            _log_to(_log_handler(log_file, foreground=args.foreground), config.log_level)
            for warning in policy.warnings:
                log.warning("%s", warning)
            for limit in low:
                log.warning("%s (HINT: %s)", limit.message, limit.hint)
            request = MountRequest(
                volume=volume if read_only else _recovered(volume, policy),
                keystore=keystore,
                policy=policy_file,
                mountpoint=mountpoint,
                options=options,
                memory_locked=lock_memory(),
                log_file=log_file,
                watchdog=watchdog,
                read_only=read_only,
            )
            try:
                run_session(request, ring, policy, ReadOnlyCalls() if read_only else SystemCalls(), ready)
            except TdefsError:
                raise
            except BaseException:
                log.exception("the mount ended unexpectedly")
                raise

        for limit in low:
            print(f"tdefs: warning: {limit.message}\nHINT:  {limit.hint}", file=sys.stderr)
        if any(mountpoint.iterdir()):
            print(
                f'tdefs: warning: "{mountpoint}" is not empty\n'
                "DETAIL:  what lies in it is hidden by the mount, and not encrypted",
                file=sys.stderr,
            )
        if read_only:
            _tell_of_read_only(volume, log_file)
        if args.foreground:
            work(tell_service_manager)
        else:
            run_in_background(work, keep=lock.descriptor, check=lock.verify)
    finally:
        lock.release()
    return Exit.OK


def _acquire(lock: VolumeLock, volume: Volume) -> None:
    """Take the volume's lock; say so where the daemon that has it is no longer mounted."""
    try:
        lock.acquire()
    except TdefsError as error:
        session = read_session(volume)
        if session is None or session.clean or not is_running(session.pid):
            # a daemon that only reads leaves no record
            points = [mount.mountpoint for mount in tdefs_mounts() if mount.backing == volume.backing]
            if all(map(is_dead, points)):
                raise
            raise TdefsError(
                error.exit_code,
                error.message,
                detail="; ".join(f'it is mounted at "{place}"' for place in points),
                hint="unmount it with 'tdefs umount' first",
            ) from None
        if _appears(Path(session.mountpoint)):
            raise
        served = f'process {session.pid} serves what was detached from "{session.mountpoint}" while in use'
        places = [f"it is mounted {place}" for place in places_of(volume.backing)]
        raise TdefsError(
            error.exit_code,
            error.message,
            detail="; ".join([served, *places]),
            hint="it ends when the last file in it is closed: stop what was started there",
        ) from None


def _appears(mountpoint: Path) -> bool:
    """Tell whether there is a mount; one that another process is about to make gets the time for that."""
    deadline = time.monotonic() + _MOUNTING_SECONDS
    while all(mount.mountpoint != mountpoint for mount in tdefs_mounts()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_MOUNTING_SECONDS / 20)
    return True


def _recovered(volume: Volume, policy: Policy) -> Volume:
    """Put right what the last session left, by the rules that held for it; then the policy's own hold."""
    empty_unfinished_files(volume)
    return allow_plain_files(volume) if policy.leaves_anything_plain() else volume


def _seconds(text: str) -> int:
    """Return a watchdog's seconds, as on the command line."""
    if not text.isdecimal() or int(text) > LONGEST_WATCHDOG:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number from 0 to {LONGEST_WATCHDOG}')
    return int(text)


def _given(argument: Path | None, setting: Path | None) -> Path | None:
    """Return what the command line says, else what the configuration says."""
    chosen = argument or setting
    return chosen.absolute() if chosen else None


def _check_key_names(policy: Policy, ring: KeyRing, policy_file: Path | None) -> None:
    missing = sorted(policy.key_names() - set(ring.names()))
    if missing:
        raise TdefsError(
            Exit.DATA_KEY_UNKNOWN,
            f"the policy uses data keys that the keystore does not hold: {', '.join(missing)}",
            detail=f'policy "{policy_file}"; the keystore holds {", ".join(ring.names())}',
            hint="use one of the keystore's data keys in the policy",
        )
    for name in policy.key_names():
        # refused now: later it would be a database that cannot create files
        ring.current(name)


def _prepare_mountpoint(mountpoint: Path | None, volume: Volume) -> Path:
    """Check the mount point; clean up what a daemon that died left there."""
    if mountpoint is None:
        raise TdefsError(
            Exit.USAGE,
            "no mount point",
            detail="neither the command line nor the configuration names one",
            hint=f"tdefs mount {volume.backing} MOUNTPOINT",
        )
    try:
        with follow(mountpoint) as way:
            refuse_exchangeable(way)
            resolved = way.path
    except NotADirectoryError:
        raise TdefsError(Exit.MOUNTPOINT_INVALID, f'mount point "{mountpoint}" is not a directory') from None
    except FileNotFoundError:
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID, f'mount point "{mountpoint}" does not exist', hint="create the directory"
        ) from None
    except OSError as error:
        if error.errno not in DEAD:
            raise
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID,
            f'mount point "{mountpoint}" lies in a dead mount',
            hint="mount that one again first",
        ) from None
    if is_dead(resolved):
        if all(mount.mountpoint != resolved for mount in tdefs_mounts()):
            raise TdefsError(
                Exit.MOUNTPOINT_INVALID,
                f'"{mountpoint}" is a dead mount of another file system',
                hint=f'take it away with "umount -l {mountpoint}"',
            )
        detach_dead(resolved)
    for mount in tdefs_mounts():
        if mount.mountpoint == resolved and mount.backing != volume.backing:
            raise TdefsError(
                Exit.MOUNTPOINT_INVALID,
                f'"{mountpoint}" is the mount point of another volume, "{mount.backing}"',
                hint="unmount that with 'tdefs umount', or choose another directory",
            )
    if resolved == volume.backing or resolved in volume.backing.parents or volume.backing in resolved.parents:
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID,
            f'mount point "{resolved}" and backing directory "{volume.backing}" contain one another',
            hint="choose two directories side by side",
        )
    return resolved


def _options(given: list[str]) -> list[str]:
    """Split ``-o a,b -o c`` into single options; a backslash keeps a comma."""
    return [
        option
        for text in given
        for option in text.replace("\\,", "\0").split(",")
        if option
        for option in [option.replace("\0", "\\,")]
    ]


class _SystemLog(SysLogHandler):
    """The system's log; where there is none, what is logged goes nowhere until there is one."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave it at that: the one who mounts has been told, and wants no traceback for each line."""


def _log_handler(log_file: Path | None, *, foreground: bool) -> logging.Handler:
    """Return what the daemon logs to; without a file that is the system's log, if there is one."""
    if foreground:
        return logging.StreamHandler(sys.stderr)
    if log_file is not None:
        return LogFile(log_file)
    handler = _SystemLog(str(_SYSTEM_LOG), facility=SysLogHandler.LOG_DAEMON)
    handler.ident = "tdefs: "
    return handler


def _tell_of_read_only(volume: Volume, log_file: Path | None) -> None:
    """Say what a mount that is only read does not do."""
    lines = [f'tdefs: "{volume.backing}" is mounted read-only']
    if not was_left_clean(volume):
        lines.append(
            "DETAIL:  its last session did not end cleanly: files whose header never reached the disk look empty, "
            "as the next mount that can write will make them"
        )
    if log_file is None and not _SYSTEM_LOG.exists():
        lines.append("HINT:  there is no system log on this host: name a log with --log-file")
    print("\n".join(lines), file=sys.stderr)


def _tell_of_no_log(volume: Volume) -> None:
    print(
        f'tdefs: warning: logging to the system\'s log, and not to "{volume.log_file}"\n'
        f'DETAIL:  others could exchange "{volume.log_file.parent}"\n'
        f"HINT:  name a file in a directory that root alone may change with --log-file",
        file=sys.stderr,
    )


def _log_to(handler: logging.Handler, level: str) -> None:
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)

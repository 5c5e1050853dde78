"""``tdefs mount``: unlock a volume and serve it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.cli.common.background import run_in_background
from tdefs.cli.common.daemon_log import SYSTEM_LOG, log_handler, log_to
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.log_file import default_log
from tdefs.cli.common.mount_point import acquire, prepare_mountpoint
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.tampering import binding_of
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access, unlock
from tdefs.cli.policy.choice import PolicyOptions, add_policy, named_policy
from tdefs.config import LONGEST_WATCHDOG, REFUSE
from tdefs.daemon.limits import low_limits
from tdefs.daemon.request import MountRequest
from tdefs.daemon.session import run_session
from tdefs.data.calls import SystemCalls
from tdefs.data.read_only import ReadOnlyCalls, is_read_only
from tdefs.errors import Exit, TdefsError
from tdefs.host import (
    keep_freed_memory,
    lock_memory,
    raise_file_limit,
    refuse_tracer,
    reserve_memory,
    tell_service_manager,
)
from tdefs.manifest.state import look
from tdefs.mounts.known import provide_connections
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.text import printable
from tdefs.volume.backing import claim
from tdefs.volume.description import Volume, read_volume
from tdefs.volume.lock import VolumeLock
from tdefs.volume.policy_choice import check_accepted, check_key_names, remembered_policy
from tdefs.volume.session_record import UNPROVEN, Ending, LastSession

log = logging.getLogger(__name__)

_UNPROVEN_HINT = (
    "if this is a copy or was restored, unmount it, say so with 'tdefs volume moved', 'copied' or 'add', and "
    "mount it again; else see who can write to the backing directory"
)


def register(subparsers: Subcommands) -> None:
    """Add the command ``mount``."""
    parser = subparsers.add_parser(
        "mount",
        help="unlock a volume and mount it",
        description="Mounts a volume, and returns when the mount serves. The daemon runs as the user who "
        "calls this: as the cluster's own user, or as root. As root, it checks every user's "
        "access against the owners and modes of the files.",
    )
    parser.add_argument("backing", metavar="BACKING", type=Path, help="the directory that holds ciphertext")
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        type=Path,
        nargs="?",
        help="PGDATA, or a directory above it; default: what the configuration says",
    )
    add_keystore_access(parser)
    add_policy(parser, "an accepted policy; default: the one that the keystore remembers")
    parser.add_argument(
        "-f",
        "--foreground",
        action="store_true",
        help="stay in the foreground, log to stderr, and notify systemd",
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
        help="default: a file in /var/log/tdefs for root, else BACKING/.tdefs/log; the system log if read-only",
    )
    parser.add_argument(
        "--watchdog",
        metavar="SECONDS",
        type=_seconds,
        help="kill a daemon that has not answered for this time; default: 0, never",
    )
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    backing: Path
    mountpoint: Path | None
    access: KeystoreAccess
    policy: PolicyOptions
    foreground: bool
    options: list[str]
    log_file: Path | None
    watchdog: int | None


def _run(invocation: Invocation, given: _Options) -> int:
    config = invocation.config
    settings = config.for_backing(given.backing)
    volume = read_volume(given.backing)
    named = named_policy(given.policy, settings)
    # made absolute before the daemon leaves the directory that relative paths refer to
    keystore = _given(given.access.keystore, settings.keystore) or volume.keystore
    options = (*_options(given.options), *settings.options)
    read_only = is_read_only(volume.backing) or "ro" in options
    for warning in claim(volume, read_only=read_only):
        print(f"tdefs: warning: {warning}", file=sys.stderr)
    lock = VolumeLock(volume)
    acquire(lock, volume)
    try:
        # only with the lock: a dead mount that this process finds may be the new mount of another one a moment
        # later
        mountpoint = prepare_mountpoint(_given(given.mountpoint, settings.mountpoint), volume)
        known = unlock(given.access, volume)
        refuse_tracer()  # again: root's could have come since, and would stay in the daemon
        ring, may = known.unlocked.ring, known.believed.statements
        choice = named or remembered_policy(may)
        check_accepted(choice, may, volume)
        check_key_names(choice, ring)
        policy = choice.policy
        state = look(binding_of(volume, known, keystore))
        believed = replace(known.believed, had_header=lambda path: state.binds(os.fsencode(path)))
        log_file = None if given.foreground else _given(given.log_file, settings.log_file)
        if log_file is None and not given.foreground and not read_only:
            log_file = default_log(volume.log_file)
            if log_file is None:
                _tell_of_no_log(volume)
        watchdog = settings.watchdog if given.watchdog is None else given.watchdog
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
            log_to(log_handler(log_file, foreground=given.foreground), config.log_level)
            for warning in policy.warnings:
                log.warning("%s", warning)
            for limit in low:
                log.warning("%s (HINT: %s)", limit.message, limit.hint)
            if known.believed.last.ending is Ending.UNPROVEN:
                log.warning("%s %s", UNPROVEN, known.believed.last.reason)
            if not read_only:
                empty_unfinished_files(volume, believed)
            request = MountRequest(
                volume=volume,
                believed=believed,
                book=known.book,
                keystore=keystore,
                policy=choice,
                policy_is_named=named is not None,
                mountpoint=mountpoint,
                options=options,
                memory_locked=lock_memory(),
                log_file=log_file,
                background=not given.foreground,
                watchdog=watchdog,
                read_only=read_only,
                state=state,
                refuses_tampering=settings.tampering == REFUSE,
            )
            try:
                run_session(request, ring, ReadOnlyCalls() if read_only else SystemCalls(), ready)
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
        for line in state.describe():
            print(f"tdefs: warning: {line}\nHINT:  see docs/TAMPERING.md", file=sys.stderr)
        if read_only:
            _tell_of_read_only(volume, known.believed.last, log_file)
        elif known.believed.last.ending is Ending.UNPROVEN:
            print(
                f"tdefs: warning: {UNPROVEN} {printable(known.believed.last.reason)}\n"
                "DETAIL:  if it was a crash, files whose header never reached the disk count as damaged\n"
                f"HINT:    {_UNPROVEN_HINT}",
                file=sys.stderr,
            )
        if given.foreground:
            work(tell_service_manager)
        else:
            run_in_background(work, keep=lock.descriptor, check=lock.verify)
    finally:
        lock.release()
    return Exit.OK


def _seconds(text: str) -> int:
    """Return a watchdog's seconds, as on the command line."""
    if not text.isdecimal() or int(text) > LONGEST_WATCHDOG:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number from 0 to {LONGEST_WATCHDOG}')
    return int(text)


def _given(argument: Path | None, setting: Path | None) -> Path | None:
    """Return what the command line says, else what the configuration says."""
    chosen = argument or setting
    return chosen.absolute() if chosen else None


def _options(given: list[str]) -> list[str]:
    """Split ``-o a,b -o c`` into single options; a backslash keeps a comma."""
    return [
        option
        for text in given
        for option in text.replace("\\,", "\0").split(",")
        if option
        for option in [option.replace("\0", "\\,")]
    ]


def _tell_of_read_only(volume: Volume, last: LastSession, log_file: Path | None) -> None:
    """Print what a read-only mount does not do."""
    lines = [f'tdefs: "{volume.backing}" is mounted read-only']
    if last.ending is Ending.UNPROVEN:
        lines.append(f"DETAIL:  {UNPROVEN} {printable(last.reason)}")
    if last.ending is Ending.UNCLEAN:
        lines.append(
            "DETAIL:  its last session did not end cleanly: files whose header never reached the disk look empty, "
            "as the next mount that can write will make them"
        )
    if log_file is None and not SYSTEM_LOG.exists():
        lines.append("HINT:  there is no system log on this host: name a log with --log-file")
    print("\n".join(lines), file=sys.stderr)


def _tell_of_no_log(volume: Volume) -> None:
    print(
        f'tdefs: warning: logging to the system\'s log, and not to "{volume.log_file}"\n'
        f'DETAIL:  others could exchange "{volume.log_file.parent}"\n'
        f"HINT:  name a file in a directory that root alone may change with --log-file",
        file=sys.stderr,
    )

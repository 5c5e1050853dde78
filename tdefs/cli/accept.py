"""``tdefs accept``: accept files that changed while the volume was not mounted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_json, print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.tampering import binding_of
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access, keystore_path, unlock
from tdefs.control import StrangerError, ask, ask_status
from tdefs.errors import DaemonNotToldError, Exit, TdefsError
from tdefs.manifest.accepting import REQUEST, accept, request
from tdefs.manifest.checking import examine
from tdefs.manifest.state import Binding, State
from tdefs.mounts.known import tdefs_mounts
from tdefs.text import printable_path
from tdefs.volume.description import Volume
from tdefs.volume.lock import exclusive, is_in_use
from tdefs.volume.session_record import Ending


def register(subparsers: Subcommands) -> None:
    """Add the command ``accept``."""
    parser = subparsers.add_parser(
        "accept",
        help="accept files that changed while the volume was not mounted",
        description="The daemon refuses files that were removed, added, emptied or exchanged while the volume "
        "was not mounted. This command accepts such files as they are now, for example after a "
        "restore of one file from a backup. It works with and without a mount; a mounted volume "
        "serves the files at once. With --list nothing is changed, and the exit code is "
        f"{Exit.TAMPERING_FOUND} if anything differs.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="a file or a directory with all files in it, relative to the mount's root, or absolute",
    )
    parser.add_argument("--all", action="store_true", help="accept all that differs")
    parser.add_argument("--list", action="store_true", help="list what differs, and accept nothing")
    parser.add_argument(
        "--older-copy",
        action="store_true",
        help="accept that the volume is an older copy, or has lost its manifest",
    )
    parser.add_argument("--json", action="store_true", help="with --list: print JSON")
    add_volume(parser, argument=False)
    add_keystore_access(parser)
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    paths: Sequence[str]
    all: bool
    list: bool
    older_copy: bool
    json: bool
    volume: VolumeChoice
    access: KeystoreAccess


def _run(invocation: Invocation, options: _Options) -> int:
    if not options.paths and not (options.all or options.list or options.older_copy):
        raise TdefsError(
            Exit.USAGE, "what is to be accepted?", hint="name paths, or --all, or --older-copy; --list shows them"
        )
    volume = options.volume.find()
    keystore = keystore_path(options.access, volume).absolute()
    known = unlock(options.access, volume)
    binding = binding_of(volume, known, keystore)
    if options.list:
        return _list(_as_served(examine(binding)), as_json=options.json)
    if is_in_use(volume):
        return _accept_mounted(invocation, options, binding)
    with exclusive(volume):
        state = examine(binding)
        paths = _chosen(options, state)
        left_clean = known.believed.last.ending is Ending.CLEAN
        accept(state, paths, older_copy=options.older_copy, left_clean=left_clean)
    invocation.changed = True
    return _say(len(paths))


def _accept_mounted(invocation: Invocation, options: _Options, binding: Binding) -> int:
    """Have the daemon accept the files. It may know of more differences, found when files were opened."""
    state = examine(binding)
    paths = sorted(_chosen(options, state))
    users = {0, os.geteuid(), binding.volume.private.stat().st_uid}
    answer = ask(binding.volume, REQUEST, only_of=users, **request(state, paths, older_copy=options.older_copy))
    if answer is None or "accepted" not in answer:
        raise DaemonNotToldError(
            f'the daemon of volume "{binding.volume.backing}" did not accept the differences',
            detail=(answer or {}).get("refused", "it did not answer this user"),
            hint="try as root or as the daemon's user; else unmount, and accept then",
        )
    invocation.changed = True
    return _say(len(paths))


def _as_served(state: State) -> State:
    """Return *state* with what the daemon, if there is one, knows about the whole volume."""
    volume = state.binding.volume
    try:
        status = ask_status(volume, only_of={0, os.geteuid(), volume.private.stat().st_uid})
    except StrangerError:
        return state
    if status is not None and (found := status.tampering) is not None:
        state.lost, state.older_than = found.lost or "", found.older_than or 0
    return state


def _chosen(options: _Options, state: State) -> set[bytes]:
    """Return the differences that the command line names.

    :raises TdefsError: FILE_NOT_FOUND for a path that does not differ.
    """
    if options.all:
        return set(state.differences)
    chosen: set[bytes] = set()
    for text in options.paths:
        path = _relative(text, state.binding.volume)
        found = {one for one in state.differences if one == path or one.startswith(path + b"/")}
        if not found:
            raise TdefsError(
                Exit.FILE_NOT_FOUND,
                f'"{printable_path(path)}" does not differ from what the last unmount left',
                hint="'tdefs accept --list' shows what does",
            )
        chosen |= found
    return chosen


def _relative(text: str, volume: Volume) -> bytes:
    """Return a path as the manifest has it."""
    path = Path(text)
    roots = [volume.data, *(mount.mountpoint for mount in tdefs_mounts() if mount.backing == volume.backing)]
    for root in roots if path.is_absolute() else ():
        if path.is_relative_to(root):
            path = path.relative_to(root)
    return os.fsencode(os.path.normpath(path))


def _list(state: State, *, as_json: bool) -> int:
    if as_json:
        print_json(
            {
                "lost": state.lost or None,
                "older_than": state.older_than or None,
                "differences": [
                    {"path": printable_path(path), "what": found.change.value, "detail": found.detail}
                    for path, found in sorted(state.differences.items())
                ],
            }
        )
    else:
        for line in state.describe_volume():
            print_line(line)
        for path, found in sorted(state.differences.items()):
            print_line(f"{printable_path(path)}: {found}")
    return Exit.OK if state.is_sound else Exit.TAMPERING_FOUND


def _say(count: int) -> int:
    print_line(f"accepted: {count} file{'' if count == 1 else 's'} as found")
    return Exit.OK

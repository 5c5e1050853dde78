"""``tdefs cat``: decrypt one file of a volume to standard output, without a mount."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from errno import EISDIR, ELOOP, ENOENT, ENOTDIR

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.streams import check_output
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access, unlock
from tdefs.errors import Exit, TdefsError
from tdefs.format.errors import DestroyedKey, FormatError
from tdefs.offline.reader import OfflineReader
from tdefs.text import printable

_NOT_THERE = {
    ENOENT: "the path must be relative to the mount point",
    ENOTDIR: "a part of its path is not a directory, or is a symbolic link, which tdefs does not follow",
    ELOOP: "it is a symbolic link, which tdefs does not follow",
    EISDIR: "it is not a regular file",
}


def register(subparsers: Subcommands) -> None:
    """Add the command ``cat``."""
    parser = subparsers.add_parser(
        "cat",
        help="print one file, decrypted, without a mount",
        description="Writes the content of one file to standard output, decrypted if it is encrypted. While "
        "the volume is mounted, data is missing that the kernel has not written yet.",
    )
    parser.add_argument("path", metavar="RELPATH", help="relative to the mount point, such as main/base/5/16384")
    add_volume(parser, argument=False)
    add_keystore_access(parser)
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    path: str
    volume: VolumeChoice
    access: KeystoreAccess


def _run(_invocation: Invocation, options: _Options) -> int:
    volume = options.volume.find()
    known = unlock(options.access, volume)
    reader = OfflineReader(volume, known.unlocked.ring, known.believed)
    try:
        with reader.open(options.path) as file:
            for chunk in file.chunks():
                # to the end, even if nobody reads it: only there it shows whether the file is sound
                sys.stdout.buffer.write(chunk)
                check_output()
    except FormatError as error:
        raise TdefsError(
            Exit.DATA_KEY_DESTROYED if isinstance(error, DestroyedKey) else Exit.FILE_DAMAGED,
            f'"{printable(options.path)}" cannot be decrypted: {error}',
            hint=error.hint,
        ) from None
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise TdefsError(
            Exit.FILE_NOT_FOUND,
            f'there is no file "{printable(options.path)}" in volume "{volume.backing}"',
            detail=_NOT_THERE[error.errno],
            hint=f"'tdefs ls {volume.backing}' lists its files",
        ) from None
    return Exit.OK

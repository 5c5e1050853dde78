"""A volume: a backing directory with tdefs's own directory in it, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import stat
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import VOLUME_ID_BYTES
from tdefs.keys.keystore.entries import MAC_BYTES
from tdefs.keys.wrapping import fits_state_mac, state_mac
from tdefs.private import OwnDirectory, own_directory
from tdefs.volume.backing import refuse_others

PRIVATE_DIRECTORY = ".tdefs"
DATA_DIRECTORY = "data"
DEFAULT_KEYSTORE = "keystore"
#: The version of a volume's layout and description; each file has its own version in its header.
VOLUME_VERSION = 2

#: Where the daemons of root log.
ROOTS_LOGS = Path("/var/log/tdefs")
_MOST_NAME = 200
_PLAIN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")

_DESCRIPTION = "volume.json"
_PURPOSE = b"tdefs v1 volume description"
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Volume:
    """The description in a volume. It is not trusted: users who can write to the directory can alter it.

    The keystore says what the volume may do. ``keystore`` is its place when the description was written, and
    ``keystore_mac`` the MAC over that place, by the keystore's keys: see :func:`remembers_truly`.
    """

    backing: Path
    volume_id: bytes
    keystore: Path
    keystore_mac: bytes = b""

    @property
    def data(self) -> Path:
        """The tree that is seen through the mount."""
        return self.backing / DATA_DIRECTORY

    @property
    def private(self) -> Path:
        """The directory that is tdefs's own."""
        return self.backing / PRIVATE_DIRECTORY

    @property
    def log_file(self) -> Path:
        """Where the daemon logs by default.

        A daemon of root does not log into the volume: the programs that it serves write to that disk, too.
        """
        try:
            is_roots = self.private.lstat().st_uid == 0
        except OSError:
            is_roots = os.geteuid() == 0
        return ROOTS_LOGS / log_name(self.backing) if is_roots else self.private / "log"

    @property
    def control_socket(self) -> Path:
        """Where the daemon answers."""
        return self.private / "control"


def log_name(backing: Path) -> str:
    """Return the name of a volume's log in a directory for all volumes: it contains the volume's path.

    The path is escaped as in systemd.unit(5), so no two have the same name: ``/srv/tdefs/main`` becomes
    ``srv-tdefs-main.log``.
    """
    name = "".join(
        "-" if byte == 0x2F else chr(byte) if chr(byte) in _PLAIN_CHARACTERS else f"\\x{byte:02x}"
        for byte in os.fsencode(backing)[1:]
    )
    if len(name) > _MOST_NAME:
        name = hashlib.sha256(os.fsencode(backing)).hexdigest()
    return f"{name}.log"


def create_volume(backing: Path, keystore: Path | None) -> Volume:
    """Make the backing directory, if it is missing, and tdefs's own in it; :func:`save_volume` completes it.

    Then the caller takes the volume's lock, and calls :func:`refuse_existing` again.

    :raises TdefsError: VOLUME_EXISTS when the directory is a volume or holds anything else; FILE_UNTRUSTED when it
        belongs to another user.
    """
    try:
        backing.mkdir(mode=0o700, parents=True, exist_ok=True)
        backing = backing.resolve()
        _check_owner(backing)
        refuse_existing(backing)
        data = backing / DATA_DIRECTORY
        if any(entry.name not in (PRIVATE_DIRECTORY, DATA_DIRECTORY) for entry in backing.iterdir()) or (
            data.exists() and any(data.iterdir())
        ):
            raise TdefsError(
                Exit.VOLUME_EXISTS,
                f'directory "{backing}" is not empty',
                hint="a volume starts empty: mount an empty one, then copy existing files in through the mount",
            )
        backing.chmod(0o700)
        private = backing / PRIVATE_DIRECTORY
        private.mkdir(mode=0o700, exist_ok=True)
        data.mkdir(mode=0o700, exist_ok=True)
        for place in (backing, private, data):
            refuse_others(place, place.lstat())
    except NotADirectoryError:
        raise TdefsError(Exit.VOLUME_EXISTS, f'"{backing}" is not a directory') from None
    except FileExistsError:
        raise TdefsError(Exit.VOLUME_EXISTS, f'"{backing}" is not a directory') from None
    return Volume(
        backing=backing,
        volume_id=os.urandom(VOLUME_ID_BYTES),
        keystore=(keystore or private / DEFAULT_KEYSTORE).absolute(),
    )


def _check_owner(backing: Path) -> None:
    """Check that *backing* is this user's, whose daemon will serve it; rights of others are taken away later."""
    owner = backing.stat().st_uid
    if owner != os.geteuid():
        raise TdefsError(
            Exit.FILE_UNTRUSTED,
            f'directory "{backing}" belongs to the user with the number {owner}, not to the user who runs this',
            detail="its owner can put other files in the place of the volume's",
            hint="run 'tdefs init' as the user who will mount the volume; let it make the directory, or give it "
            f"to that user: chown {os.geteuid()} {shlex.quote(str(backing))}",
        )


def is_volume(place: Path) -> bool:
    """Check whether *place* is the backing directory of a volume.

    A directory ``.tdefs`` alone does not say so: a mount point has one, too, with the daemon's virtual files.
    """
    return os.path.lexists(place / PRIVATE_DIRECTORY / _DESCRIPTION)


def refuse_existing(backing: Path) -> None:
    """Check that *backing* is not a volume yet.

    :raises TdefsError: VOLUME_EXISTS.
    """
    if is_volume(backing):
        raise TdefsError(
            Exit.VOLUME_EXISTS,
            f'directory "{backing}" is already a volume',
            hint="mount it with 'tdefs mount', or choose another directory",
        )


def save_volume(volume: Volume, history_key: bytes) -> None:
    """Write the description; this makes the directory a volume.

    :param history_key: of its keystore; it authenticates the place of the keystore.
    """
    description = {
        "format_version": VOLUME_VERSION,
        "volume_id": volume.volume_id.hex(),
        "keystore": os.fspath(volume.keystore),
        "keystore_mac": state_mac(history_key, _PURPOSE, _remembered(volume)).hex(),
    }
    text = json.dumps(description, indent=2) + "\n"
    with private_directory(volume) as directory:
        directory.write_durably(_DESCRIPTION, text.encode())


def remembers_truly(volume: Volume, history_key: bytes) -> bool:
    """Return whether a tdefs with the keys of the keystore wrote that it is at ``volume.keystore``."""
    return fits_state_mac(history_key, _PURPOSE, _remembered(volume), volume.keystore_mac)


def _remembered(volume: Volume) -> bytes:
    return volume.volume_id + os.fsencode(volume.keystore)


def abandon_volume(volume: Volume) -> None:
    """Undo :func:`create_volume` after a failure; the caller holds the lock, so no other process uses it."""
    with suppress(OSError):
        volume.data.rmdir()
        shutil.rmtree(volume.private)


def read_volume(backing: Path) -> Volume:
    """Return the volume in *backing*, by its description.

    :raises TdefsError: NOT_A_VOLUME, VOLUME_DAMAGED or FILE_UNTRUSTED.
    """
    path = backing / PRIVATE_DIRECTORY / _DESCRIPTION
    try:
        with own_directory(path.parent, last_link=False) as directory:
            data = directory.read(_DESCRIPTION, _MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise TdefsError(
            Exit.NOT_A_VOLUME,
            f'"{backing}" is not a tdefs volume',
            detail=f'there is no "{path}"',
            hint="create one with 'tdefs init'",
        ) from None
    volume = parse_description(data, path, backing.resolve())
    try:
        has_data = stat.S_ISDIR(volume.data.lstat().st_mode)
    except FileNotFoundError:
        has_data = False
    if not has_data:
        raise _damaged(path, f'there is no directory "{volume.data}", where the files of a volume lie')
    return volume


def private_directory(volume: Volume) -> AbstractContextManager[OwnDirectory]:
    """Open tdefs's own directory during a ``with`` block."""
    return own_directory(volume.private, last_link=False)


def _read_json(data: bytes) -> Any:
    """Return the value of JSON.

    :raises ValueError: it is too long, or not JSON.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError("too long")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_description(data: bytes, path: Path, backing: Path) -> Volume:
    """Return what the description *data*, read from *path*, says of the volume in *backing*.

    :raises TdefsError: VOLUME_DAMAGED.
    """
    try:
        found = _read_json(data)
    except ValueError:
        raise _damaged(path, "it is not JSON") from None
    if not isinstance(found, dict):
        raise _damaged(path, "it is not a JSON object")
    version = found.get("format_version")
    if version == 1:
        raise _of_other_version(path, "it was made by an older tdefs")
    if version != VOLUME_VERSION:
        known = version if isinstance(version, int) and abs(version) < 1 << 32 else "unknown"
        raise _of_other_version(path, f"its format version is {known}; this tdefs knows {VOLUME_VERSION}")
    texts = [found.get(name) for name in ("volume_id", "keystore", "keystore_mac")]
    if not all(isinstance(text, str) for text in texts):
        raise _damaged(path, "a field is missing or of the wrong type")
    volume_id, keystore, mac = map(str, texts)
    if not _is_absolute_path(keystore):
        raise _damaged(path, "the place of the keystore is not an absolute path")
    return Volume(
        backing,
        _read_hex(path, "volume id", volume_id, VOLUME_ID_BYTES),
        Path(keystore),
        _read_hex(path, "MAC", mac, MAC_BYTES),
    )


def _read_hex(path: Path, what: str, text: str, length: int) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        raise _damaged(path, f"its {what} is not hexadecimal") from None
    if len(value) != length:
        raise _damaged(path, f"its {what} has the wrong length")
    return value


def _is_absolute_path(text: str) -> bool:
    try:
        return text.startswith("/") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _of_other_version(path: Path, what: str) -> TdefsError:
    return TdefsError(
        Exit.VOLUME_DAMAGED,
        f'the volume of "{path}" cannot be used: {what}',
        hint="read it with the tdefs that made it, and copy what is in it to a new volume through both mounts",
    )


def _damaged(path: Path, what: str) -> TdefsError:
    return TdefsError(
        Exit.VOLUME_DAMAGED,
        f'"{path}" is damaged: {what}',
        hint="restore it from a backup of the backing directory",
    )

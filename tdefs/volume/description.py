"""A volume: a backing directory with tdefs's own directory in it, and the lock that admits only one process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdefs.errors import Exit, TdefsError, VolumeInUseError
from tdefs.keys.hierarchy import VOLUME_ID_BYTES
from tdefs.keys.keystore.entries import MAC_BYTES
from tdefs.keys.wrapping import fits_state_mac, state_mac
from tdefs.private import OwnDirectory, own_directory
from tdefs.volume.backing import refuse_others
from tdefs.volume.session_record import read_session

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

# a process that checks whether the volume is in use holds the lock for a moment
_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.03


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
    with _private(volume) as directory:
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


def _private(volume: Volume) -> AbstractContextManager[OwnDirectory]:
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


class VolumeLock:
    """The lock of a volume: the process that has locked tdefs's own directory is the only writer.

    The directory itself is locked. So no second writer gets in, even if somebody removes or replaces files in it.
    The kernel takes the lock back when the process dies, for whatever reason, so no lock is ever stale.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        :raises TdefsError: VOLUME_IN_USE, which names the process that holds it; FILE_UNTRUSTED.
        """
        fd = _open_to_lock(self._volume)
        if not _lock(fd):
            os.close(fd)
            holder, hint = _who_uses(self._volume)
            raise VolumeInUseError(f'volume "{self._volume.backing}" is in use', detail=holder, hint=hint)
        self._fd = fd
        try:
            self.verify()
        except TdefsError:
            self.release()
            raise

    def verify(self) -> None:
        """Check that the lock is held: that the descriptor is the directory at its place, and has it locked.

        Call this after anything that could have closed the descriptor: a fork that closes files, a dup2.

        :raises TdefsError: VOLUME_IN_USE: nothing keeps other processes away.
        """
        try:
            held = os.fstat(self.descriptor)
            is_held = os.path.samestat(held, self._volume.private.lstat()) and _lock(self.descriptor)
        except OSError:
            is_held = False
        if not is_held:
            raise VolumeInUseError(
                f'the lock on volume "{self._volume.backing}" is lost',
                detail=f'"{self._volume.private}" was replaced or removed, or another process has it locked',
                hint="see that no other process uses the volume, then try again",
            )

    @property
    def descriptor(self) -> int:
        """The descriptor that holds the lock; a process that closes it gives the lock back."""
        if self._fd is None:
            raise ValueError("the lock is not held")
        return self._fd

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open_to_lock(volume: Volume) -> int:
    """Open the directory that is locked. flock(2) needs no write access, so a read-only copy has a lock, too."""
    with _private(volume) as directory:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)


def _lock(fd: int) -> bool:
    for attempt in range(_LOCK_TRIES):
        if attempt:
            time.sleep(_LOCK_PAUSE_SECONDS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def _who_uses(volume: Volume) -> tuple[str, str]:
    """Return which process holds the volume's lock, and what to do about it."""
    session = read_session(volume)
    if session is not None and not session.clean and is_running(session.pid):
        return (
            f'process {session.pid} has it mounted at "{session.mountpoint}"',
            "unmount it with 'tdefs umount' first",
        )
    # the record of the last session does not name a command that is about to mount
    pid = _holder_of_lock(volume)
    who = f"process {pid}" if pid is not None and is_running(pid) else "another process"
    return f"{who} is about to mount it, or to unmount it", "try again when it has ended"


def _holder_of_lock(volume: Volume) -> int | None:
    """Return the process that took the lock, as the kernel shows it in /proc/locks (proc(5))."""
    with suppress(OSError, ValueError, IndexError):
        status = volume.private.lstat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1:4:2] == ["FLOCK", "WRITE"] and fields[5] == place:
                return int(fields[4])
    return None


def is_running(pid: int) -> bool:
    """Return whether a process of this number runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # proc(5): the state follows the name, which may hold anything
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def is_in_use(volume: Volume) -> bool:
    """Return whether some process holds the volume's lock."""
    try:
        fd = _open_to_lock(volume)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def exclusive(volume: Volume) -> Iterator[None]:
    """Hold the volume's lock during a ``with`` block."""
    lock = VolumeLock(volume)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()

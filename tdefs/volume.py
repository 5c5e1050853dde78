"""A volume: a backing directory with tdefs's own directory in it, and who may use it at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tdefs.errors import Exit, TdefsError
from tdefs.format.header import FORMAT_VERSION
from tdefs.keys.hierarchy import VOLUME_ID_BYTES
from tdefs.private import OwnDirectory, UntrustedError, own_directory

PRIVATE_DIRECTORY = ".tdefs"
DATA_DIRECTORY = "data"
DEFAULT_KEYSTORE = "keystore"

#: Where the daemons of root log.
ROOTS_LOGS = Path("/var/log/tdefs")
_MOST_NAME = 200
_PLAIN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.")

_DESCRIPTION = "volume.json"
SESSION_FILE = "session.json"
_SESSION_SIZE = 8192
_MAX_BYTES = 1 << 16

# who asks whether the volume is in use holds the lock for an instant
_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Volume:
    """What a volume remembers of itself.

    ``plain_files`` is set for ever once the volume is mounted with a policy that leaves anything in the clear.
    """

    backing: Path
    volume_id: bytes
    keystore: Path
    policy: Path | None
    plain_files: bool

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
        """Where the daemon logs unless told otherwise.

        Not in the volume where it is root's: whoever is served writes there, too, by way of the mount.
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
    """Return the name of a log among those of other volumes, which tells the volume's path.

    As systemd.unit(5) escapes paths, so that no two have one name: ``/srv/tdefs/main`` is ``srv-tdefs-main.log``.
    """
    name = "".join(
        "-" if byte == 0x2F else chr(byte) if chr(byte) in _PLAIN_CHARACTERS else f"\\x{byte:02x}"
        for byte in os.fsencode(backing)[1:]
    )
    if len(name) > _MOST_NAME:
        name = hashlib.sha256(os.fsencode(backing)).hexdigest()
    return f"{name}.log"


def create_volume(backing: Path, keystore: Path | None, policy: Path | None) -> Volume:
    """Make the backing directory, if need be, and tdefs's own in it; :func:`save_volume` completes it.

    The caller takes the volume's lock then, and calls :func:`refuse_existing` again.

    :raises TdefsError: VOLUME_EXISTS when the directory is a volume or holds anything else.
    """
    try:
        backing.mkdir(mode=0o700, parents=True, exist_ok=True)
        backing = backing.resolve()
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
    except NotADirectoryError:
        raise TdefsError(Exit.VOLUME_EXISTS, f'"{backing}" is not a directory') from None
    except FileExistsError:
        raise TdefsError(Exit.VOLUME_EXISTS, f'"{backing}" is not a directory') from None
    return Volume(
        backing=backing,
        volume_id=os.urandom(VOLUME_ID_BYTES),
        keystore=(keystore or private / DEFAULT_KEYSTORE).absolute(),
        policy=policy.absolute() if policy else None,
        plain_files=False,
    )


def refuse_existing(backing: Path) -> None:
    """Check that *backing* is not a volume yet.

    :raises TdefsError: VOLUME_EXISTS.
    """
    if os.path.lexists(backing / PRIVATE_DIRECTORY / _DESCRIPTION):
        raise TdefsError(
            Exit.VOLUME_EXISTS,
            f'directory "{backing}" is already a volume',
            hint="mount it with 'tdefs mount', or choose another directory",
        )


def save_volume(volume: Volume) -> None:
    """Write down what the volume remembers; from the first time on the directory is a volume."""
    description = {
        "format_version": FORMAT_VERSION,
        "volume_id": volume.volume_id.hex(),
        "keystore": os.fspath(volume.keystore),
        "policy": os.fspath(volume.policy) if volume.policy else None,
        "plain_files": volume.plain_files,
    }
    text = json.dumps(description, indent=2) + "\n"
    with _private(volume) as directory:
        directory.write_durably(_DESCRIPTION, text.encode())


def abandon_volume(volume: Volume) -> None:
    """Undo :func:`create_volume` after a failure; the caller holds the lock, so nobody else's work is there."""
    with suppress(OSError):
        volume.data.rmdir()
        shutil.rmtree(volume.private)


def read_volume(backing: Path) -> Volume:
    """Read what the volume in *backing* remembers.

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
    return parse_description(data, path, backing.resolve())


def _private(volume: Volume) -> AbstractContextManager[OwnDirectory]:
    """Open the directory that is tdefs's own for the time of a ``with`` block."""
    return own_directory(volume.private, last_link=False)


def _read_json(data: bytes) -> Any:
    """Return the value of JSON. Raises ValueError."""
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
    if version != FORMAT_VERSION:
        known = version if isinstance(version, int) and abs(version) < 1 << 32 else "unknown"
        raise _damaged(path, f"its format version is {known}; this tdefs knows {FORMAT_VERSION}")
    volume_id, keystore, policy = found.get("volume_id"), found.get("keystore"), found.get("policy")
    if not isinstance(volume_id, str) or not isinstance(keystore, str) or not isinstance(policy, str | None):
        raise _damaged(path, "a field is missing or of the wrong type")
    try:
        number = bytes.fromhex(volume_id)
    except ValueError:
        raise _damaged(path, "its volume id is not hexadecimal") from None
    if len(number) != VOLUME_ID_BYTES:
        raise _damaged(path, "its volume id has the wrong length")
    for place in (keystore, policy):
        if place is not None and not _is_absolute_path(place):
            raise _damaged(path, "the place of the keystore or of the policy is no absolute path")
    return Volume(
        backing=backing,
        volume_id=number,
        keystore=Path(keystore),
        policy=Path(policy) if policy else None,
        # unknown means the careful answer for reading: a file without a header may be a plain one
        plain_files=found.get("plain_files") is not False,
    )


def _is_absolute_path(text: str) -> bool:
    try:
        return text.startswith("/") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _damaged(path: Path, what: str) -> TdefsError:
    return TdefsError(
        Exit.VOLUME_DAMAGED,
        f'"{path}" is damaged: {what}',
        hint="restore it from a backup of the backing directory",
    )


def allow_plain_files(volume: Volume) -> Volume:
    """Remember that files of the volume may be in the clear from now on."""
    if volume.plain_files:
        return volume
    volume = replace(volume, plain_files=True)
    save_volume(volume)
    return volume


@dataclass(frozen=True, slots=True)
class Session:
    """One time that the volume is mounted; ``clean`` once everything was written out at its end."""

    pid: int
    mountpoint: str
    clean: bool


class VolumeLock:
    """The right to be the one writer of a volume: held by the process that has tdefs's own directory locked.

    The directory itself, so that nothing in it could be removed, replaced or planted to let a second writer in.
    The kernel takes the lock back when the process dies, whatever it dies of, so no lock is ever stale.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        :raises TdefsError: VOLUME_IN_USE, saying who holds it; FILE_UNTRUSTED.
        """
        fd = _open_to_lock(self._volume)
        if not _lock(fd):
            os.close(fd)
            holder, hint = _who_uses(self._volume)
            raise TdefsError(
                Exit.VOLUME_IN_USE, f'volume "{self._volume.backing}" is in use', detail=holder, hint=hint
            )
        self._fd = fd
        try:
            self.verify()
        except TdefsError:
            self.release()
            raise

    def verify(self) -> None:
        """Check that the lock is held: its descriptor is the directory that others find there, and has it locked.

        To be called after what could have taken the descriptor away: a fork that closes files, a dup2.

        :raises TdefsError: VOLUME_IN_USE, since nothing keeps others away.
        """
        try:
            held = os.fstat(self.descriptor)
            is_held = os.path.samestat(held, self._volume.private.lstat()) and _lock(self.descriptor)
        except OSError:
            is_held = False
        if not is_held:
            raise TdefsError(
                Exit.VOLUME_IN_USE,
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
    """Open what is locked, for reading, which flock(2) is content with: so a read-only copy has a lock, too."""
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
    """Return who holds the volume's lock, and what to do about it."""
    session = read_session(volume)
    if session is not None and not session.clean and is_running(session.pid):
        return (
            f'process {session.pid} has it mounted at "{session.mountpoint}"',
            "unmount it with 'tdefs umount' first",
        )
    # the last session's record says nothing of a command that is about to mount
    pid = _holder_of_lock(volume)
    who = f"process {pid}" if pid is not None and is_running(pid) else "another process"
    return f"{who} is about to mount it, or to unmount it", "try again when it has ended"


def _holder_of_lock(volume: Volume) -> int | None:
    """Return the process that took the lock, as the kernel tells it in /proc/locks (proc(5))."""
    with suppress(OSError, ValueError, IndexError):
        status = volume.private.lstat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1:4:2] == ["FLOCK", "WRITE"] and fields[5] == place:
                return int(fields[4])
    return None


def is_running(pid: int) -> bool:
    """Tell whether a process of this number runs; one that has ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # proc(5): the state follows the name, which may hold anything
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def is_in_use(volume: Volume) -> bool:
    """Tell whether some process holds the volume's lock."""
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


def read_session(volume: Volume) -> Session | None:
    """Return the current session, or else the last one; ``None`` if there was none or it cannot be told.

    :raises TdefsError: FILE_UNTRUSTED.
    """
    try:
        with _private(volume) as directory:
            return parse_session(directory.read(SESSION_FILE, _MAX_BYTES + 1))
    except OSError:
        return None


def parse_session(data: bytes) -> Session | None:
    """Return the session that the record *data* tells of; ``None`` for what is no record."""
    try:
        found = _read_json(data)
    except ValueError:
        return None
    match found:
        case {"pid": int(pid), "mountpoint": str(mountpoint), "clean": bool(clean)}:
            return Session(pid, mountpoint, clean)
    return None


def was_left_clean(volume: Volume) -> bool:
    """Tell whether everything was written out when the volume was last used, or it never was."""
    if not os.path.lexists(volume.private / SESSION_FILE):
        return True
    session = read_session(volume)
    return session is not None and session.clean


def write_session(volume: Volume, session: Session) -> None:
    """Write down durably how the volume is being used.

    In place, in a file of constant size: a full disk must not keep a volume from being mounted. What a torn write
    leaves is not JSON, and read as an unclean end.
    """
    record = (json.dumps(asdict(session)) + "\n").encode().ljust(_SESSION_SIZE)
    with _private(volume) as directory:
        is_new = not directory.exists(SESSION_FILE)
        fd = directory.open(SESSION_FILE, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, record, 0)
            os.ftruncate(fd, len(record))  # a file that damage has made longer would stay damaged for ever
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            # without its name the first session, too, would pass for one that never was
            directory.sync()


def refuse_strangers_volume(volume: Volume) -> None:
    """Check that nobody but root and this process's user may change what tdefs writes down of the volume.

    Whoever mounts it, with the right to write, trusts and changes these files as long as it is mounted.

    :raises TdefsError: FILE_UNTRUSTED.
    """
    owner = volume.private.lstat().st_uid
    if owner not in (0, os.geteuid()):
        raise UntrustedError(
            volume.private,
            f"it belongs to user {owner}, and the daemon would be user {os.geteuid()}'s",
            f'mount it as that user, or give it to this one: chown -R {os.geteuid()} "{volume.private}"',
        )


@contextmanager
def exclusive(volume: Volume) -> Iterator[None]:
    """Hold the volume's lock for the time of a ``with`` block."""
    lock = VolumeLock(volume)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()

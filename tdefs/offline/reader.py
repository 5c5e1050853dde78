"""Reading a volume's backing directory without a mount, and without ever writing to it.

Paths are relative to the volume's data directory, as they are relative to its mount point. Bytes that are not
UTF-8 are surrogates, as os.fsdecode() makes them. Symbolic links are never followed: a tablespace behind one is
another volume.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EBADF, EISDIR, ELOOP, ENOENT
from functools import lru_cache, partial
from typing import NoReturn

from tdefs.data.calls import SystemCalls
from tdefs.data.forms import Broken, Doubts, Empty, Encrypted, FileForms, Form, Plain, look_at
from tdefs.data.identity import check_identity, identity_at
from tdefs.data.link_encryption import LinkCipher
from tdefs.data.zeros import StoredDoubts
from tdefs.format.content import FileState, read_from
from tdefs.format.errors import DestroyedKey, ForeignLink, FormatError
from tdefs.format.header import RECORD_SIZE, Header
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.links import SEVERAL_NAMES, LinkHead, decode_link, target_length
from tdefs.format.special import PLANTED_NODE, name_of_node, special_of
from tdefs.format.suites import suite_of
from tdefs.keys.hierarchy import DestroyedRounds, KeyRing, was_destroyed
from tdefs.policy.model import Policy
from tdefs.policy.paths import classify
from tdefs.volume.believed import STRICTEST, Believed
from tdefs.volume.description import Volume

CHUNK_SIZE = 1 << 20
# how much the kernel reads ahead while one chunk is decrypted and checked
_READ_AHEAD_BYTES = 4 << 20

ENCRYPTED = "encrypted"
PLAIN = "plain"
EMPTY = "empty"
DAMAGED = "damaged"
UNREADABLE = "unreadable"
#: Directories nested more deeply are not read: each costs as many steps as there are directories above it.
MOST_LEVELS = 1000
#: The kind of a symbolic link, and how it is encrypted.
LINK = "link"
LINK_ALGORITHM = "aes-256-gcm"
STATES = (ENCRYPTED, PLAIN, EMPTY, DAMAGED, UNREADABLE)


@dataclass(frozen=True, slots=True)
class Description:
    """What a file says about itself, without any key.

    ``state`` is one of :data:`STATES`. ``size`` is the plaintext length in bytes, ``None`` if it is unknown.
    ``data_key``, ``round`` and ``algorithm`` are set if the header could be read. If it is known that the data key
    was destroyed, the state is ``unreadable``, with an ``error``. ``target`` is where a symbolic link leads, if
    the keys are known.
    """

    path: str
    kind: str
    state: str
    stored_size: int
    size: int | None = None
    data_key: str | None = None
    round: int | None = None
    algorithm: str | None = None
    error: str | None = None
    target: str | None = None


def walk(
    volume: Volume, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and attributes of every regular file, sorted within each directory; see :func:`walk_all`."""
    for path, status in walk_all(volume, on_error):
        if stat.S_ISREG(status.st_mode):
            yield path, status


def walk_all(
    volume: Volume, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and attributes of everything that is no directory, sorted within each directory.

    What vanishes meanwhile is skipped.

    :param on_error: called for a directory that cannot be read; without it the error is raised.
    """
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            entries = _entries(volume, directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            error.filename = os.fspath(volume.data / directory)
            if on_error is None:
                raise
            on_error(error)
            continue
        below = []
        for name, status in entries:
            path = f"{directory}/{name}" if directory else name
            if stat.S_ISDIR(status.st_mode):
                below.append(path)
            else:
                yield path, status
        pending += reversed(below)


def _entries(volume: Volume, directory: str) -> list[tuple[str, os.stat_result]]:
    """Return names and attributes of the entries of a directory, sorted, without those that vanish meanwhile."""
    if directory.count("/") >= MOST_LEVELS:
        raise OSError(ELOOP, "it is nested too deeply")
    found = []
    fd = open_directory(volume, [part for part in directory.split("/") if part], os.O_RDONLY)
    try:
        for name in sorted(os.listdir(fd)):
            with suppress(FileNotFoundError):
                found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
    finally:
        os.close(fd)
    return found


def open_directory(volume: Volume, parts: list[str], access: int) -> int:
    """Open a directory below the volume's data directory, one component of *parts* after the other.

    So no symbolic link can lead out of the volume, and a path may be longer than PATH_MAX, as in a mount.
    """
    parts = [volume.data.name, *parts]
    fd = os.open(volume.backing, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for number, part in enumerate(parts, 1):
        flags = (os.O_PATH if number < len(parts) else access) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            inner = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def describe_all(
    volume: Volume,
    destroyed: DestroyedRounds | None = None,
    believed: Believed = STRICTEST,
    ring: KeyRing | None = None,
) -> Iterator[Description]:
    """Describe every file, symbolic link and other node of *volume*, in the order of :func:`walk_all`.

    :param destroyed: the rounds whose files nobody can read any more; the keystore knows them.
    :param ring: the keys, if the targets of symbolic links are needed.
    """
    too_deep: list[str] = []

    def note(error: OSError) -> None:
        if error.errno != ELOOP:
            raise error
        too_deep.append(os.path.relpath(error.filename, volume.data))

    for path, status in walk_all(volume, note):
        if stat.S_ISREG(status.st_mode):
            found = describe(volume, path, believed)
        elif stat.S_ISLNK(status.st_mode):
            found = describe_link(volume, path, ring)
        else:
            found = Description(path, name_of_node(status.st_mode), DAMAGED, stored_size=0, error=PLANTED_NODE)
        if found is not None:
            yield _without_key(found, destroyed or {})
    for path in too_deep:
        yield Description(path, "directory", UNREADABLE, stored_size=0, error="it is nested too deeply")


def _without_key(found: Description, destroyed: DestroyedRounds) -> Description:
    """Mark an encrypted file as unreadable if its data key is among the *destroyed* rounds."""
    if found.state != ENCRYPTED or found.data_key is None or found.round is None:
        return found
    key = found.data_key, found.round
    if key not in destroyed:
        return found
    return replace(found, state=UNREADABLE, error=was_destroyed(*key, destroyed[key]))


def describe(volume: Volume, path: str, believed: Believed = STRICTEST) -> Description | None:
    """Return what the file at *path* says about itself; ``None`` if it has vanished."""
    kind = classify(path).kind.value
    try:
        with open_without_links(volume, path) as fd:
            size = os.fstat(fd).st_size
            doubts = doubts_of(path, fd, size, believed)
            return describe_content(volume, path, first_bytes(fd), size, doubts, believed)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"could not be read: {error.strerror}"
        return Description(path, kind, UNREADABLE, stored_size=0, error=reason)


def describe_link(volume: Volume, path: str, ring: KeyRing | None) -> Description | None:
    """Return what the symbolic link at *path* says about itself, and its target if there are keys.

    :returns: ``None`` if it has vanished.
    """
    try:
        text = link_text(volume, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Description(path, LINK, UNREADABLE, 0, error=f"could not be read: {error.strerror}")
    except FormatError as error:
        return Description(path, LINK, DAMAGED, 0, error=str(error))
    head: LinkHead | None = None
    target, state, reason = None, ENCRYPTED, None
    try:
        head = decode_link(text).head
        if ring is not None:
            target = LinkCipher(lambda: ring).decrypt_at(text, os.fsencode(path)).target
    except FormatError as error:
        state, reason = UNREADABLE if isinstance(error, DestroyedKey) else DAMAGED, str(error)
    return Description(
        path,
        LINK,
        state,
        stored_size=len(text),
        size=target_length(len(text)) if head else None,
        data_key=head.key_name if head else None,
        round=head.key_round if head else None,
        algorithm=LINK_ALGORITHM if head else None,
        error=reason,
        target=os.fsdecode(target) if target is not None else None,
    )


def link_text(volume: Volume, path: str) -> bytes:
    """Return the stored text of the symbolic link at *path*.

    :raises ForeignLink: it has several names, which no link of tdefs has.
    :raises OSError: there is no symbolic link, or it cannot be read.
    """
    *directories, name = path.split("/")
    fd = open_directory(volume, directories, os.O_PATH)
    try:
        if os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink > 1:
            raise ForeignLink(SEVERAL_NAMES)
        return os.fsencode(os.readlink(name, dir_fd=fd))
    finally:
        os.close(fd)


def describe_content(
    volume: Volume, path: str, page: bytes, size: int, doubts: Doubts, believed: Believed = STRICTEST
) -> Description:
    """Return what a stored file of *size* bytes says about itself.

    :param page: its first bytes.
    :param doubts: answers where these bytes do not decide.
    :raises OSError: what *doubts* needs cannot be read.
    """
    kind = classify(path).kind.value
    header: Header | None = None
    try:
        found = look_at(page, size, believed.expectations(volume), doubts)
        if isinstance(found, Plain):
            return Description(path, kind, PLAIN, stored_size=size, size=size)
        if isinstance(found, Empty):
            return Description(path, kind, EMPTY, stored_size=size, size=found.length)
        header = found
        special = special_of(header.identities)
        kind = special.name if special is not None else kind
        state, length, text = ENCRYPTED, suite_of(header.suite).plaintext_length(size), None
    except FormatError as error:
        state, length, text = DAMAGED, None, str(error)
    return Description(
        path,
        kind,
        state,
        stored_size=size,
        size=length,
        data_key=header.key_name if header else None,
        round=header.key_round if header else None,
        algorithm=suite_of(header.suite).name if header else None,
        error=text,
    )


def doubts_of(path: str, fd: int, size: int, believed: Believed) -> StoredDoubts:
    """Return the object that answers where the first bytes of the open file at *path* do not decide."""

    def should_be_encrypted() -> bool:
        return _policy(believed).decide(classify(path), path).encrypted

    return StoredDoubts(SystemCalls(), fd, size, should_be_encrypted, lambda: believed.had_header(path))


@lru_cache(maxsize=1)
def _policy(believed: Believed) -> Policy:
    return believed.policy()


@dataclass(frozen=True, slots=True)
class Plaintext:
    """The content of one open file. ``form`` is what the file says about itself, ``length`` is in bytes.

    ``clean_header`` says whether the header page is zero after the record; no reader needs these bytes.
    """

    form: Form
    length: int
    _read: Callable[[int, int], bytes | bytearray | memoryview]
    clean_header: bool = True

    def chunks(self) -> Iterator[bytes | bytearray | memoryview]:
        """Yield all of it in pieces of :data:`CHUNK_SIZE`, the last one shorter.

        :raises FormatError: the file ends before its length.
        :raises OSError: the disk fails.
        """
        for offset in range(0, self.length, CHUNK_SIZE):
            yield self._read(offset, CHUNK_SIZE)


class OfflineReader:
    """Reads the files of one volume with its keys."""

    def __init__(self, volume: Volume, ring: KeyRing, believed: Believed = STRICTEST) -> None:
        self._volume = volume
        self._believed = believed
        self._forms = FileForms(ring, believed.expectations(volume))
        #: The encrypted files that were opened so far: by file id, their paths by device and inode number. A file
        #: id has several paths if one file is a copy of another; several names of one file are no copies.
        self.file_ids: dict[bytes, dict[tuple[int, int], str]] = {}

    @contextmanager
    def open(self, path: str) -> Iterator[Plaintext]:
        """Open the file at *path* during a ``with`` block.

        :raises FormatError: it is damaged, or belongs to another place.
        :raises OSError: there is no such regular file, or it cannot be read.
        """
        with open_without_links(self._volume, path) as fd:
            status = os.fstat(fd)
            size = status.st_size
            os.posix_fadvise(fd, 0, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            page = first_bytes(fd)
            form = self._forms.recognise(page, size, doubts_of(path, fd, size, self._believed))
            store = _ReadOnlyStore(fd)
            if isinstance(form, Broken):
                raise form.error
            if isinstance(form, Encrypted):
                shown_by = self.file_ids.setdefault(form.header.file_id, {})
                shown_by.setdefault((status.st_dev, status.st_ino), path)
                if special_of(form.header.identities) is None:
                    check_identity(form.header, identity_at(path))
                state = FileState(suite_of(form.header.suite).plaintext_length(size))
                content = self._forms.content(form.header, store, state)
                clean = not any(store.pread(HEADER_SIZE - RECORD_SIZE, RECORD_SIZE))
                yield Plaintext(form, state.length, partial(read_from, store, content), clean)
            elif isinstance(form, Empty):
                yield Plaintext(form, form.length, store.read)
            else:
                yield Plaintext(form, size, store.read)

    def link_target(self, path: str) -> bytes:
        """Return where the symbolic link at *path* leads.

        :raises FormatError: it cannot be decrypted, or belongs to another place.
        :raises OSError: there is no symbolic link, or it cannot be read.
        """
        text = link_text(self._volume, path)
        return LinkCipher(lambda: self._forms.ring).decrypt_at(text, os.fsencode(path)).target


class _ReadOnlyStore:
    """An open backing file that can only be read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, size: int, offset: int) -> bytes:
        """Return *size* bytes, fewer only at the end of the file, and let the kernel read ahead."""
        os.posix_fadvise(self._fd, offset + _READ_AHEAD_BYTES, size, os.POSIX_FADV_WILLNEED)
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes from *offset* on: the content of a plain file."""
        return self.pread(size, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> NoReturn:
        """Refuse: nothing is ever written here."""
        raise OSError(EBADF, os.strerror(EBADF))

    def truncate(self, size: int) -> NoReturn:
        """Refuse: nothing is ever written here."""
        raise OSError(EBADF, os.strerror(EBADF))


def first_bytes(fd: int) -> bytes:
    """Return the bytes that decide the form of a file: its header record, or the header page if that is zero."""
    page = os.pread(fd, RECORD_SIZE, 0)
    return page if any(page) else os.pread(fd, HEADER_SIZE, 0)


@contextmanager
def open_without_links(volume: Volume, path: str, access: int = os.O_RDONLY) -> Iterator[int]:
    """Open a regular file during a ``with`` block.

    One component is opened at a time, so that no symbolic link leads out of the volume.

    :raises OSError: ENOENT for ``..``, ELOOP or ENOTDIR for a symbolic link, EISDIR for
        what is neither a regular file nor a link.
    """
    *directories, name = path.split("/")
    parts = [*directories, name]
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), path)
    fd = open_directory(volume, directories, os.O_PATH)
    try:
        # nonblocking, so that this does not wait for a FIFO in the file's place
        flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR), path)
        yield file
    finally:
        os.close(file)

"""What a file or link of a volume says of itself, as far as this needs no key of the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from errno import ELOOP
from functools import lru_cache

from tdefs.data.calls import SystemCalls
from tdefs.data.forms import Doubts, Empty, Plain, look_at
from tdefs.data.link_encryption import LinkCipher
from tdefs.data.zeros import StoredDoubts
from tdefs.format.errors import DestroyedKey, ForeignLink, FormatError
from tdefs.format.header import Header
from tdefs.format.links import SEVERAL_NAMES, LinkHead, decode_link, target_length
from tdefs.format.special import PLANTED_NODE, name_of_node, special_of
from tdefs.format.suites import suite_of
from tdefs.keys.hierarchy import DestroyedRounds, KeyRing, was_destroyed
from tdefs.offline.walking import first_bytes, open_directory, open_without_links, walk_all
from tdefs.policy.model import Policy
from tdefs.policy.paths import classify
from tdefs.volume.believed import STRICTEST, Believed
from tdefs.volume.description import Volume

ENCRYPTED = "encrypted"
PLAIN = "plain"
EMPTY = "empty"
DAMAGED = "damaged"
UNREADABLE = "unreadable"
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

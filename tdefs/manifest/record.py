"""The manifest: the files in a volume when it was last unmounted cleanly, as bytes under a MAC.

::

    0    8  magic "tdefsmf1"
    8   16  volume id
    24  32  the keystore's name for the volume (ASCII, zero padded); zero for a copy that it did not know there
    56   8  counter: one more with each manifest of the volume
    64   8  older than this counter, which was known when it was noticed; 0 if it never was
    72   4  flags
    76   4  number of directories
    80   …  the directories
    end 32  HMAC-SHA256 under the state key, over the purpose string and everything before

Each directory: number of bytes of its path, of entries, and of bytes of names (4 bytes each); the path; the names
in order, a zero byte between two; then of all entries the kind (1 byte each), the length (8 bytes each) and the
tag (16 bytes each). Numbers are little-endian. The columns are what makes it fast to read.

A tag is the start of a SHA-256: of the header record of an encrypted file that has content (the record holds the
file id and the header's MAC), of the stored text of a link; 16 bytes 01 for a file in the clear; zero for
all else. A length is the stored one, of a device its number.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

MAGIC = b"tdefsmf1"
TAG_BYTES = 16
NO_TAG = bytes(TAG_BYTES)
PLAIN_TAG = b"\1" * TAG_BYTES
MAC_BYTES = 32
#: The size for some ten million files. A longer file is not a manifest.
MAX_BYTES = 1 << 30
_PIECE = 1 << 20

_PURPOSE = b"tdefs v1 manifest"
_HEAD = struct.Struct("<8s16s32sQQII")
_DIRECTORY = struct.Struct("<III")


class NodeKind(IntEnum):
    """What an entry is."""

    FILE = 1
    DIRECTORY = 2
    LINK = 3
    SPECIAL = 4


class Flag(IntFlag):
    """Properties of a whole manifest."""

    #: The volume may hold files that are not in it, and it is not known since when.
    INCOMPLETE = 1
    #: The manifest before it had been removed or altered, and nobody has accepted that.
    FOLLOWS_LOST = 2


NO_FLAGS = Flag(0)


class Entry(NamedTuple):
    """What one name led to; see the module's docstring for ``length`` and ``tag``."""

    kind: NodeKind
    length: int
    tag: bytes = NO_TAG


class BadManifestError(Exception):
    """The bytes are not a manifest of this volume, or were not written with its key."""


@dataclass(slots=True)
class Listing:
    """The entries of one directory by name, column by column; ``unbound`` marks those that are not valid now."""

    names: list[bytes] = field(default_factory=list)
    kinds: bytes = b""
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    tags: bytes = b""
    unbound: bytearray = field(default_factory=bytearray)

    @classmethod
    def of(cls, rows: list[tuple[bytes, int, int, bytes]]) -> Listing:
        """Return the listing of *rows*: name, kind, length and tag."""
        rows.sort()
        names, kinds, lengths, tags = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(list(names), bytes(kinds), array("Q", lengths), b"".join(tags), bytearray(len(rows)))

    def find(self, name: bytes) -> int:
        """Return the position of *name*, -1 if it is not there."""
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else -1

    def entry(self, at: int) -> Entry:
        """Return the entry at a position."""
        tag = self.tags[at * TAG_BYTES : (at + 1) * TAG_BYTES]
        return Entry(NodeKind(self.kinds[at]), self.lengths[at], tag)

    def entries(self) -> Iterator[tuple[bytes, Entry]]:
        """Yield every name with its entry."""
        for at, name in enumerate(self.names):
            yield name, self.entry(at)


@dataclass(slots=True)
class Manifest:
    """Every directory of a volume by its path, the root's being empty.

    ``entry`` is the keystore's name for the volume, since several volumes may share a keystore, and its keys.
    """

    volume_id: bytes
    counter: int
    directories: dict[bytes, Listing]
    older_than: int = 0
    flags: Flag = NO_FLAGS
    entry: str = ""

    def find(self, path: bytes) -> tuple[Listing, int] | None:
        """Return the listing and the position of *path*; ``None`` if it has no entry."""
        directory, _, name = path.rpartition(b"/")
        listing = self.directories.get(directory)
        at = listing.find(name) if listing is not None else -1
        return (listing, at) if listing is not None and at >= 0 else None


def encode(manifest: Manifest, key: bytes) -> bytes:
    """Return the bytes of a manifest, under the state *key*."""
    pieces = [
        _HEAD.pack(
            MAGIC,
            manifest.volume_id,
            manifest.entry.encode("ascii"),
            manifest.counter,
            manifest.older_than,
            manifest.flags,
            len(manifest.directories),
        )
    ]
    for path, listing in manifest.directories.items():
        names = b"\0".join(listing.names)
        pieces += [
            _DIRECTORY.pack(len(path), len(listing.names), len(names)),
            *(path, names, listing.kinds, _little(listing.lengths).tobytes(), listing.tags),
        ]
    body = b"".join(pieces)
    return body + _mac(key, body).finalize()


def is_genuine(fd: int, key: bytes) -> bool:
    """Return whether the open file is a manifest under the state *key*, without reading it into memory.

    :raises OSError: it cannot be read.
    """
    size = os.fstat(fd).st_size - MAC_BYTES
    if not 0 < size <= MAX_BYTES:
        return False
    mac = _mac(key, b"")
    offset = 0
    while offset < size:
        piece = os.pread(fd, min(_PIECE, size - offset), offset)
        if not piece:
            return False
        mac.update(piece)
        offset += len(piece)
    try:
        mac.verify(os.pread(fd, MAC_BYTES, size))
    except InvalidSignature:
        return False
    return True


def decode(data: bytes, volume_id: bytes, key: bytes) -> Manifest:
    """Return the manifest in *data*.

    :raises BadManifestError: it is not a manifest of this volume, or was not written with the state *key*.
    """
    body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    try:
        _mac(key, body).verify(mac)
    except InvalidSignature:
        raise BadManifestError("it is not as it was written") from None
    try:
        return _parse(body, volume_id)
    except (struct.error, ValueError):
        # of another version, since somebody with the key wrote it
        raise BadManifestError("its form is unknown") from None


def _parse(body: bytes, volume_id: bytes) -> Manifest:
    magic, volume, entry, counter, older_than, flags, count = _HEAD.unpack_from(body)
    if magic != MAGIC:
        raise BadManifestError("its form is unknown")
    if volume != volume_id:
        raise BadManifestError("it is of another volume")
    directories: dict[bytes, Listing] = {}
    at = _HEAD.size
    for _ in range(count):
        path_size, entries, names_size = _DIRECTORY.unpack_from(body, at)
        at += _DIRECTORY.size
        columns = []
        for size in (path_size, names_size, entries, entries * 8, entries * TAG_BYTES):
            columns.append(body[at : at + size])
            at += size
        path, names, kinds, lengths, tags = columns
        found = array("Q")
        found.frombytes(lengths)
        listing = Listing(names.split(b"\0") if entries else [], kinds, _little(found), tags, bytearray(entries))
        if not len(listing.names) == len(kinds) == len(found) or len(tags) != entries * TAG_BYTES:
            raise ValueError("columns of different length")
        directories[path] = listing
    name = entry.rstrip(b"\0").decode("ascii")
    return Manifest(volume, counter, directories, older_than, Flag(flags), name)


def digest(data: bytes) -> bytes:
    """Return the tag of a header record, or of a link's text."""
    summed = hashes.Hash(hashes.SHA256())
    summed.update(data)
    return summed.finalize()[:TAG_BYTES]


def _little(numbers: array[int]) -> array[int]:
    if sys.byteorder == "big":
        numbers = array("Q", numbers)
        numbers.byteswap()
    return numbers


def _mac(key: bytes, body: bytes) -> HMAC:
    mac = HMAC(key, hashes.SHA256())
    mac.update(_PURPOSE)
    mac.update(body)
    return mac

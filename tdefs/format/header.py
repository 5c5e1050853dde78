"""The header record at the start of an encrypted file.

All integers are little-endian. The record lies in the first 512-byte sector, so a torn write leaves the old
record or the new one. The rest of the header page is zero (a hole).

    offset size  field
         0    8  magic 89 54 44 45 46 53 0d 0a
         8    2  format version (2)
        10    2  cipher suite (1 = AES-256-XTS)
        12    4  page size (8192)
        16   16  volume id
        32   16  file id (random)
        48   32  data key name (ASCII, zero padded)
        80    4  data key round
        84    8  data key fingerprint
        92    4  zero
        96   32  identity: what the file may be opened as
       128   32  second identity, set only while a rename is under way
       160  288  zero (reserved for later suites)
       448   32  HMAC-SHA256 of bytes 0..447 under the data key's header MAC key
       480   32  SHA-256 of bytes 0..479

An identity is: binding (1 byte), fork or class number (1), zero (2), database OID (4), relfilenode (4), segment
(4), name digest (16). The bindings are those of :class:`Binding`; what a binding does not use is zero.

The checksum finds damage without a key. The MAC finds a header that was made without this key.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, hmac

from tdefs.format.errors import (
    DamagedHeader,
    ForeignFile,
    MissingHeader,
    OldFormat,
    UnsupportedFormat,
    WrongKey,
)
from tdefs.format.layout import PAGE_SIZE
from tdefs.format.suites import DEFAULT_SUITE, SUITES

MAGIC = b"\x89TDEFS\r\n"
FORMAT_VERSION = 2

RECORD_SIZE = 512
_FIXED = struct.Struct("<8sHHI16s16s32sI8s4x32s32s288x")
_MAC_AT = 448
_CHECKSUM_AT = 480
_IDENTITY = struct.Struct("<BBHIII16s")
# where a record of format version 1 had its checksum, and how far it went
_OLD_CHECKSUM_AT = 224
_OLD_RECORD_SIZE = 256
NAME_DIGEST_BYTES = 16
_KEY_NAME = re.compile(rb"[a-z][a-z0-9_]{0,30}")

assert _FIXED.size == _MAC_AT  # noqa: S101 - the layout above, checked once at import


class Binding(IntEnum):
    """How an identity binds a file to a place. Number 2 was one of format version 1."""

    UNUSED = 0
    RELATION = 1
    ANY_PLACE = 3
    NAMED = 4
    CLASS = 5
    SPECIAL = 6


class FileClass(IntEnum):
    """Classes of files that PostgreSQL renames to each other's names. The numbers never change."""

    WAL = 1
    RELATION_CACHE = 2
    TEMPORARY = 3
    REPLICATION = 4
    STATISTICS = 5
    LOG = 6
    BACKUP = 7
    DATABASE = 8
    OTHER = 9


class Identity(NamedTuple):
    """What a file may be opened as.

    - RELATION: the numbers that PostgreSQL puts in a relation file's path. ``fork`` is PostgreSQL's ForkNumber:
      0 main, 1 fsm, 2 vm, 3 init.
    - NAMED: ``name`` is the truncated SHA-256 of the path.
    - CLASS: ``fork`` is a :class:`FileClass`.
    - SPECIAL: ``fork`` is the type (1 = FIFO, 2 = character device, 6 = block device, 12 = socket), ``database`` a
      device's major number, ``relfilenode`` its minor number.
    """

    binding: Binding
    database: int = 0
    relfilenode: int = 0
    fork: int = 0
    segment: int = 0
    name: bytes = bytes(NAME_DIGEST_BYTES)

    def __str__(self) -> str:
        match self.binding:
            case Binding.RELATION:
                fork = ("", "_fsm", "_vm", "_init")[self.fork] if self.fork < 4 else f"_fork{self.fork}"
                segment = f".{self.segment}" if self.segment else ""
                return f"relation file {self.relfilenode}{fork}{segment} of database {self.database}"
            case Binding.NAMED:
                return f"a file that is bound to its name (digest {self.name.hex()[:8]})"
            case Binding.CLASS:
                known = self.fork in FileClass.__members__.values()
                kind = FileClass(self.fork).name.lower().replace("_", " ") if known else f"number {self.fork}"
                return f"a file of the class {kind!r}"
            case Binding.SPECIAL:
                return "a FIFO, socket or device"
            case _:
                return "any file"


ANY_PLACE = Identity(Binding.ANY_PLACE)
_UNUSED = Identity(Binding.UNUSED)


def named(path: bytes) -> Identity:
    """Return the identity of the file that lies at *path*, relative to the mount's root, and nowhere else."""
    return Identity(Binding.NAMED, name=_sha256(path)[:NAME_DIGEST_BYTES])


def of_class(file_class: FileClass) -> Identity:
    """Return the identity of a file that may lie wherever files of its class lie."""
    return Identity(Binding.CLASS, fork=file_class)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: see the layout in the module's docstring."""

    volume_id: bytes
    file_id: bytes
    key_name: str
    key_round: int
    key_fingerprint: bytes
    identities: tuple[Identity, ...]
    suite: int = DEFAULT_SUITE.number

    def accepts(self, identity: Identity) -> bool:
        """Return whether the file may be opened as *identity*."""
        return identity in self.identities or ANY_PLACE in self.identities

    def bound_to(self, *identities: Identity) -> Header:
        """Return the same header bound to *identities*, one or two."""
        return replace(self, identities=tuple(dict.fromkeys(identities)))


def encode_header(header: Header, mac_key: bytes) -> bytes:
    """Return the header record, ``RECORD_SIZE`` bytes."""
    first, second = (*header.identities, _UNUSED)[:2]
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT_VERSION,
        header.suite,
        PAGE_SIZE,
        header.volume_id,
        header.file_id,
        header.key_name.encode("ascii"),
        header.key_round,
        header.key_fingerprint,
        _encode_identity(first),
        _encode_identity(second),
    )
    summed = fixed + _mac(mac_key, fixed).finalize()
    return summed + _sha256(summed)


def decode_header(record: bytes, volume_id: bytes | None) -> Header:
    """Return what the header *record* says, with everything checked that needs no key.

    :param volume_id: of the volume that the file lies in; ``None`` accepts any.
    :raises MissingHeader: every byte is zero.
    :raises DamagedHeader: the record is cut short, or its checksum does not match.
    :raises OldFormat: an older tdefs made it.
    :raises UnsupportedFormat: a version, suite or page size that this module does not know.
    :raises ForeignFile: the record belongs to another volume.
    """
    if not any(record[:RECORD_SIZE]):
        raise MissingHeader("the header is all zero: the file was never synced before a crash, or was wiped")
    if len(record) < RECORD_SIZE:
        raise DamagedHeader(f"the header is cut short: {len(record)} of {RECORD_SIZE} bytes are left")
    if _is_of_version_1(record):
        raise OldFormat("the header is of format version 1: it was made by an older tdefs")
    if _sha256(record[:_CHECKSUM_AT]) != record[_CHECKSUM_AT:RECORD_SIZE]:
        raise DamagedHeader("the header is damaged: its checksum does not match")
    magic, version, suite, page_size, volume, file_id, name, key_round, fingerprint, first, second = _FIXED.unpack(
        record[:_MAC_AT]
    )
    if magic != MAGIC:
        raise DamagedHeader("the header is damaged: its magic number is wrong")
    if version != FORMAT_VERSION or suite not in SUITES or page_size != PAGE_SIZE:
        raise UnsupportedFormat(
            f"the header is of format version {version}, cipher suite {suite}, page size {page_size}; "
            f"known are version {FORMAT_VERSION}, suites {sorted(SUITES)}, page size {PAGE_SIZE}"
        )
    if volume_id is not None and volume != volume_id:
        raise ForeignFile(f"the file belongs to another volume ({volume.hex()})")
    key_name = name.rstrip(b"\0")
    if not _KEY_NAME.fullmatch(key_name):
        # it is shown in messages, and a user who can write here can make a checksum
        raise DamagedHeader("the header is damaged: its data key name is not valid")
    slots = (_decode_identity(first), _decode_identity(second))
    identities = tuple(identity for identity in slots if identity.binding != Binding.UNUSED)
    return Header(volume, file_id, key_name.decode("ascii"), key_round, fingerprint, identities, suite)


def verify_header(record: bytes, header: Header, mac_key: bytes, fingerprint: bytes) -> None:
    """Check that *record*, decoded as *header*, was made with the data key of *mac_key* and *fingerprint*.

    :raises WrongKey: it was made with another key of the same name, or without the key.
    """
    if header.key_fingerprint != fingerprint:
        raise WrongKey(f"the header was made with another key called {header.key_name!r}")
    try:
        _mac(mac_key, record[:_MAC_AT]).verify(record[_MAC_AT:_CHECKSUM_AT])
    except InvalidSignature:
        raise WrongKey("the header's MAC does not match: it was altered by someone without the key") from None


def shown_file_id(record: bytes) -> bytes:
    """Return the file id in the header *record*, unchecked."""
    return record[32:48]


def resembles_header(record: bytes, volume_id: bytes) -> bool:
    """Return whether *record* starts an encrypted file, even a damaged one.

    A plain file is any file without a header, so a header with a flipped bit must not count as plain. Either the
    magic number or the volume id is enough, and damage would have to hit both.
    """
    if len(record) < len(MAGIC):
        # cut to a few bytes; fewer than these may well begin a plain file
        return len(record) >= 4 and MAGIC.startswith(record)
    return record[16:32] == volume_id or record[:8] == MAGIC or record[1:6] == MAGIC[1:6]


def _is_of_version_1(record: bytes) -> bool:
    """Return whether *record* is an intact header of format version 1, which had its checksum elsewhere."""
    old = record[:_OLD_RECORD_SIZE]
    return old.startswith(MAGIC + b"\x01\0") and _sha256(old[:_OLD_CHECKSUM_AT]) == old[_OLD_CHECKSUM_AT:]


def _encode_identity(identity: Identity) -> bytes:
    binding, database, relfilenode, fork, segment, name = identity
    return _IDENTITY.pack(binding, fork, 0, database, relfilenode, segment, name)


def _decode_identity(packed: bytes) -> Identity:
    binding, fork, _, database, relfilenode, segment, name = _IDENTITY.unpack(packed)
    try:
        return Identity(Binding(binding), database, relfilenode, fork, segment, name)
    except ValueError:
        raise UnsupportedFormat(f"the header has an identity of unknown kind {binding}") from None


def _sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


def _mac(key: bytes, data: bytes) -> hmac.HMAC:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac

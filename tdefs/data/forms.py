"""Making and recognising encrypted files: between a header on the disk and a cipher in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tdefs.errors import DataKeyDestroyedError, DataKeyRevokedError, TdefsError
from tdefs.format.content import Content, FileState, Store
from tdefs.format.errors import (
    DamagedHeader,
    DestroyedKey,
    ForeignFile,
    FormatError,
    LowSuite,
    MissingHeader,
    RevokedKey,
    UnknownDataKey,
)
from tdefs.format.header import (
    Header,
    Identity,
    decode_header,
    encode_header,
    resembles_header,
    verify_header,
)
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suites import suite_of
from tdefs.keys.hierarchy import (
    FILE_ID_BYTES,
    DataKey,
    KeyRing,
    derive_file_key,
    derive_header_mac_key,
    key_fingerprint,
)
from tdefs.keys.keystore.entries import FIRST_SUITE


@dataclass(frozen=True, slots=True)
class Plain:
    """A file that is stored as it is."""


@dataclass(frozen=True, slots=True)
class Empty:
    """A file without a header and without content but zeros: it is not yet encrypted or plain."""

    length: int = 0


@dataclass(frozen=True, slots=True)
class Encrypted:
    """An encrypted file, its header checked.

    ``unused``: nothing was ever encrypted under its file id, which was made in this session.
    """

    header: Header
    unused: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """An encrypted file that cannot be presented."""

    error: FormatError


Form = Plain | Empty | Encrypted | Broken


@dataclass(frozen=True, slots=True)
class Expectations:
    """What may be found in a volume.

    ``plain_files``: whether it may hold files that are not encrypted. If no policy ever left a file in the clear,
    a file without a header was put there by somebody else, or lost its header.

    ``lost_headers``: whether its last session ended without a clean unmount. Then files may exist whose header
    never became durable. No byte of these was ever reported as durable.

    ``lowest_suite``: this volume's tdefs made no files of a lower cipher suite.
    """

    volume_id: bytes
    plain_files: bool
    lost_headers: bool
    lowest_suite: int = FIRST_SUITE


class Doubts(Protocol):
    """Questions about a file that starts with zeros."""

    def should_be_encrypted(self) -> bool:
        """Return whether the policy would encrypt it today."""

    def is_marked_plain(self) -> bool:
        """Return whether it was made as a plain file."""

    def interrupted_length(self) -> int | None:
        """Return how many zeros it held when tdefs began to encrypt it; ``None`` if it never did."""

    def is_all_zero(self) -> bool:
        """Return whether it holds nothing but zeros."""

    def had_header(self) -> bool:
        """Return whether its header is known to have been on the disk, so that no crash has lost it."""


def look_at(page: bytes, size: int, expected: Expectations, doubts: Doubts) -> Plain | Empty | Header:
    """Return what a stored file is, as far as that is known without a key: its header is decoded, not verified.

    :param page: the first bytes of the file: its header record, or where that is zero the header page.
    :param size: the stored size in bytes.
    :param doubts: asked only if the first bytes do not decide it.
    :raises FormatError: the file cannot be presented.
    """
    if size == 0:
        return Empty()
    if not any(page):
        return _without_header(size, expected, doubts)
    if not resembles_header(page, expected.volume_id):
        if expected.plain_files:
            return Plain()
        raise ForeignFile("the file has no header, and nothing in this volume is stored in the clear")
    if size < HEADER_SIZE:
        raise DamagedHeader(f"the file is cut inside its header page: {size} bytes are left")
    header = decode_header(page, expected.volume_id)
    if header.suite < expected.lowest_suite:
        raise LowSuite(
            f"the file has cipher suite {header.suite}, and the lowest of this volume is {expected.lowest_suite}"
        )
    return header


def _without_header(size: int, expected: Expectations, doubts: Doubts) -> Plain | Empty:
    """Return what a file is that starts with zeros; see :func:`look_at`."""
    if not expected.plain_files:
        if expected.lost_headers and not doubts.had_header():
            return Empty()
        raise MissingHeader("the header is all zero: it was wiped")
    # In such a volume the header of a new file is durable before anything else is written to the file. So after a
    # crash the file holds nothing but zeros.
    length = doubts.interrupted_length()
    if length is None and not doubts.should_be_encrypted():
        return Plain()
    if doubts.is_all_zero():
        return Empty(size if length is None else length)
    if doubts.is_marked_plain():
        return Plain()
    raise MissingHeader("the header is all zero: it was wiped, or a plain file has lost its mark")


class FileForms:
    """Makes headers of new files with a data key and recognises encrypted files.

    It knows keys, never paths or descriptors.
    """

    def __init__(self, ring: KeyRing, expected: Expectations) -> None:
        self._ring = ring
        self._expected = expected
        self._mac_keys: dict[tuple[str, int], tuple[bytes, bytes]] = {}

    @property
    def ring(self) -> KeyRing:
        """The keys in use."""
        return self._ring

    def use_ring(self, ring: KeyRing) -> None:
        """Use other keys of the same volume from now on."""
        self._ring = ring
        self._mac_keys.clear()

    @property
    def plain_files(self) -> bool:
        """Whether the volume may hold files that are not encrypted."""
        return self._expected.plain_files

    def allow_plain_files(self) -> None:
        """Take account of a policy that leaves files in the clear, in a volume that held none before.

        The headers of all files must be on the disk, since from now on zeros may be a file in the clear.
        """
        self._expected = replace(self._expected, plain_files=True)

    def resembles_encrypted(self, head: bytes) -> bool:
        """Return whether a file that starts with *head* would be taken for an encrypted one."""
        return resembles_header(head, self._expected.volume_id)

    def new_header(self, key_name: str | None, identity: Identity) -> Header:
        """Return a header for a new file under the newest round of a data key (``None``: the default one).

        :raises RevokedKey: no round of it may be used for new files.
        """
        try:
            key = self._ring.current(key_name or self._ring.default_name)
        except DataKeyRevokedError as error:
            raise RevokedKey(error.message) from None
        return Header(
            volume_id=self._ring.volume_id,
            file_id=os.urandom(FILE_ID_BYTES),
            key_name=key.name,
            key_round=key.round,
            key_fingerprint=self._header_keys(key)[1],
            identities=(identity,),
        )

    def renewed(self, header: Header, key_name: str | None) -> Header:
        """Return a header with a new file id for an empty file that had *header*, bound as that was.

        If no round of the data key may be used for new files, the header keeps its round: the file is not new, and
        PostgreSQL has opened it to write to it.
        """
        try:
            new = self.new_header(key_name, header.identities[0])
        except RevokedKey:
            return replace(header, file_id=os.urandom(FILE_ID_BYTES))
        return replace(new, identities=header.identities)

    def encode(self, header: Header) -> bytes:
        """Return the record to store for *header*."""
        return encode_header(header, self._header_keys(self._key(header))[0])

    def file_key(self, header: Header) -> bytes:
        """Return the key of the one file that *header* belongs to."""
        suite = suite_of(header.suite)
        return derive_file_key(self._key(header), header.file_id, suite.file_key_purpose, suite.file_key_bytes)

    def content(
        self,
        header: Header,
        store: Store,
        state: FileState,
        begin: Callable[[], bytes | None] = lambda: None,
    ) -> Content:
        """Return the content of the one file that *header* belongs to.

        :param state: what changes of the file; the caller owns it.
        :param begin: see :meth:`tdefs.format.suites.Suite.content`.
        """
        return suite_of(header.suite).content(store, state, self.file_key(header), begin)

    def recognise(self, page: bytes, size: int, doubts: Doubts) -> Form:
        """Return what a stored file is, with its header verified; see :func:`look_at` for the parameters."""
        try:
            found = look_at(page, size, self._expected, doubts)
            if not isinstance(found, Header):
                return found
            mac_key, fingerprint = self._header_keys(self._key(found))
            verify_header(page, found, mac_key, fingerprint)
        except FormatError as error:
            return Broken(error)
        return Encrypted(found)

    def _key(self, header: Header) -> DataKey:
        try:
            return self._ring.get(header.key_name, header.key_round)
        except DataKeyDestroyedError as error:
            raise DestroyedKey(error.message) from None
        except TdefsError as error:
            raise UnknownDataKey(error.message) from None

    def _header_keys(self, key: DataKey) -> tuple[bytes, bytes]:
        """Return the header MAC key and the fingerprint of a data key."""
        known = self._mac_keys.get((key.name, key.round))
        if known is None:
            known = derive_header_mac_key(key), key_fingerprint(key)
            self._mac_keys[key.name, key.round] = known
        return known

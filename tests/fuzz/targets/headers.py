"""Targets: the header record, and the length of a stored file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from tdefs.data.forms import Broken, Encrypted, Expectations, FileForms
from tdefs.data.identity import check_identity
from tdefs.format.errors import FormatError
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, Binding, FileClass, Identity, named, of_class
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suite1.layout import plaintext_length, stored_size
from tdefs.format.suite1.pages import page_cipher
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing, derive_header_mac_key
from tdefs.offline.describing import describe_content
from tdefs.volume.description import Volume
from tests.fuzz.contract import Target, expect, expect_line
from tests.fuzz.mending import with_checksum, with_mac
from tests.support.served_volume import Answers
from tests.support.stored_file import StoredFile

_VOLUME_ID = bytes(range(16))
_DATA_KEY = DataKey("dk_1", 1, AES_256_XTS, bytes(range(32)))
_MAC_KEY = derive_header_mac_key(_DATA_KEY)
_RING = KeyRing(_VOLUME_ID, "dk_1", [_DATA_KEY])
_FORMS = [
    FileForms(_RING, Expectations(_VOLUME_ID, plain_files, lost_headers))
    for plain_files in (False, True)
    for lost_headers in (False, True)
]
_VOLUME = Volume(Path("/backing"), _VOLUME_ID, Path("/keystore"))
_DOUBTS = Answers(zeros=False)
_PLACES = (
    of_class(FileClass.WAL),
    Identity(Binding.RELATION, 5, 16384),
    Identity(Binding.RELATION, 5, 16384, 1, 1),
    named(b"pg_hba.conf"),
)
#: How far the first byte of an input lets an attacker get.
_AS_IT_IS, _RIGHT_CHECKSUM, _RIGHT_MAC, _ANY_SIZE = (bytes([number]) for number in range(4))


def _genuine(number: int, *identities: Identity) -> bytes:
    header = _FORMS[0].new_header(None, identities[0])
    # the same in every run
    return _FORMS[0].encode(replace(header, file_id=bytes([number] * 16)).bound_to(*identities))


_GENUINE = [
    _genuine(1, _PLACES[0]),
    _genuine(2, _PLACES[1], _PLACES[0]),
    _genuine(3, ANY_PLACE),
    _genuine(4, _PLACES[3]),
]


def _header(data: bytes) -> str:
    mode, page = data[:1], data[1:]
    size = max(len(page), HEADER_SIZE)
    if mode == _RIGHT_CHECKSUM:
        page = with_checksum(page)
    elif mode == _RIGHT_MAC:
        page = with_mac(page, _MAC_KEY)
    elif mode == _ANY_SIZE:
        size = int.from_bytes(page[RECORD_SIZE - 6 : RECORD_SIZE - 1], "little")
    forms = [forms.recognise(page[:HEADER_SIZE], size, _DOUBTS) for forms in _FORMS]
    for form in forms:
        if isinstance(form, Broken):
            _check_error(form.error)
        elif isinstance(form, Encrypted):
            expect(mode == _RIGHT_MAC or page[:RECORD_SIZE] in _GENUINE, "a header without a MAC is believed")
            for place in _PLACES:
                try:
                    check_identity(form.header, place)
                except FormatError as error:
                    _check_error(error)
    told = describe_content(_VOLUME, "base/5/16384", page[:HEADER_SIZE], size, _DOUBTS)
    expect((told.error is not None) == (told.state == "damaged"), "damage is told without a reason")
    expect(told.data_key is None or told.data_key.isidentifier(), "a data key's name is shown that is none")
    return type(forms[0]).__name__


def _check_error(error: FormatError) -> None:
    expect_line(error)
    expect(bool(error.hint), "the error has no hint")


def _header_seeds() -> list[bytes]:
    modes = (_AS_IT_IS, _RIGHT_CHECKSUM, _RIGHT_MAC, _ANY_SIZE)
    return [mode + record for mode in modes for record in (*_GENUINE, bytes(RECORD_SIZE), b"15\n")]


class _Bytes:
    """A stored file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread(self, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        raise AssertionError("a reader writes")

    def truncate(self, size: int) -> None:
        raise AssertionError("a reader truncates")


def _length(data: bytes) -> str:
    """Any size means one length, and that length that size; then a file is read, of which there is so much."""
    size = int.from_bytes(data[:5], "little")
    try:
        length = plaintext_length(size)
    except FormatError as error:
        _check_error(error)
        expect(size < HEADER_SIZE + 16 and size != HEADER_SIZE, "a size that a file can have is refused")
    else:
        expect(length >= 0 and stored_size(length) == size, "length and stored size do not fit")
    offset, count = int.from_bytes(data[5:8], "little") % 20000, int.from_bytes(data[8:11], "little") % 40000
    stored = (bytes(HEADER_SIZE) + data[12:] * (data[11] if len(data) > 11 else 1))[: HEADER_SIZE + 30000]
    cipher = page_cipher(_FORMS[0].file_key(_FORMS[0].new_header(None, ANY_PLACE)))
    try:
        file = StoredFile(_Bytes(stored), cipher, len(stored))
    except FormatError as error:
        _check_error(error)
        return "refused"
    got = bytes(file.read(offset, count))
    expect(len(got) == max(0, min(count, file.length - offset)), "a read has another length")
    # each page by itself gives the same as all at once
    parts = b"".join(
        bytes(file.read(at, min(100, offset + count - at))) for at in range(offset, offset + count, 100)
    )
    expect(parts == got, "parts of a file differ from the whole")
    return "read"


def _length_seeds() -> list[bytes]:
    sizes = (0, 1, 8191, 8192, 8193, 8207, 8208, 8209, 16384, 1 << 39)
    text = hashlib.sha256(b"seed").digest()
    cut = bytes(11) + b"\1" + b"cut"
    return [cut] + [
        size.to_bytes(5, "little") + (size % 9000).to_bytes(3, "little") + bytes([200, 10, 0, size % 200]) + text
        for size in sizes
    ]


TARGETS = (
    Target("header", _header, _header_seeds, 600),
    Target("length", _length, _length_seeds, 300),
)

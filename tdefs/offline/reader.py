"""Reading the content of a volume's files with its keys, without a mount and without ever writing to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EBADF
from functools import partial
from typing import NoReturn

from tdefs.data.forms import Broken, Empty, Encrypted, FileForms, Form
from tdefs.data.identity import check_identity, identity_at
from tdefs.data.link_encryption import LinkCipher
from tdefs.format.content import FileState, read_from
from tdefs.format.header import RECORD_SIZE
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.special import special_of
from tdefs.format.suites import suite_of
from tdefs.keys.hierarchy import KeyRing
from tdefs.offline.describing import doubts_of, link_text
from tdefs.offline.walking import first_bytes, open_without_links
from tdefs.volume.believed import STRICTEST, Believed
from tdefs.volume.description import Volume

CHUNK_SIZE = 1 << 20
# how much the kernel reads ahead while one chunk is decrypted and checked
_READ_AHEAD_BYTES = 4 << 20


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

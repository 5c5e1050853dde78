"""The journal of changed files: what the manifest does not bind any more, durable before the change is made.

The file ``.tdefs/changed`` is made with its full size, and written in place. So files can be removed on a full
disk. ::

    0     8  magic "tdefsch1"
    8    16  volume id
    24   32  the keystore's name for the volume, as in the manifest that it belongs to
    56    8  counter of that manifest, little-endian
    64   16  random
    80   32  MAC over the purpose string and these 80 bytes
    2048 32  the same MAC over another purpose string, if nothing is bound any more; else zero
    4096  …  records: number of bytes of paths (4 bytes), the paths with a zero byte between two, MAC

A record's MAC is over a purpose string, the MAC before it (for the first record the one at 80), and the record. So
a record cannot be forged, exchanged or left out, and cannot come from the journal of another manifest. If the end
is cut off, more files are bound, not fewer. A path that ends in "/" stands for a directory with all that is in it.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import HINTS
from tdefs.keys.wrapping import fits_mac, make_mac
from tdefs.manifest.record import Manifest
from tdefs.private import UntrustedError, own_directory
from tdefs.reserve import with_own_rights
from tdefs.volume.description import Volume

log = logging.getLogger(__name__)

JOURNAL_FILE = "changed"
#: The size from the beginning: room for some thousands of paths.
PREPARED_BYTES = 1 << 18

_MAGIC = b"tdefsch1"
_BEGIN_PURPOSE = b"tdefs v1 changed files"
_ALL_PURPOSE = b"tdefs v1 changed files: all"
_RECORD_PURPOSE = b"tdefs v1 changed files: record"
_HEAD = struct.Struct("<8s16s32sQ16s")
_RANDOM_BYTES = 16
_MAC_BYTES = 32
_ALL_AT = 2048
_RECORDS_AT = 4096
_SIZE = struct.Struct("<I")
#: More is never read or written: then nothing is bound any more. The journal may use the blocks that the disk
#: keeps for root, and long names must not fill these.
_MAX_BYTES = 1 << 26


@dataclass(slots=True)
class Changed:
    """What a journal says: ``paths`` that changed, or ``everything``; the next record goes after ``end``."""

    begun: bool = False
    everything: bool = False
    paths: list[bytes] = field(default_factory=list)
    end: int = _RECORDS_AT
    mac: bytes = b""


def read_journal(volume: Volume, key: bytes, manifest: Manifest) -> Changed:
    """Return what the journal of *manifest* says; nothing if tdefs has made none.

    :raises OSError: it cannot be read.
    :raises UntrustedError: the directory is not tdefs's own.
    """
    with own_directory(volume.private, last_link=False) as directory:
        try:
            data = directory.read(JOURNAL_FILE, _MAX_BYTES)
        except (FileNotFoundError, UntrustedError):
            return Changed()
    return parse_journal(data, key, manifest)


def parse_journal(data: bytes, key: bytes, manifest: Manifest) -> Changed:
    """Return what the bytes of a journal say; nothing if they are not of *manifest*."""
    head, mac = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _MAC_BYTES]
    if len(head) < _HEAD.size or not fits_mac(mac, key, _BEGIN_PURPOSE, head):
        return Changed()
    if head[:-_RANDOM_BYTES] != _head_of(manifest)[:-_RANDOM_BYTES]:
        return Changed()
    found = Changed(begun=True, mac=mac)
    found.everything = fits_mac(data[_ALL_AT : _ALL_AT + _MAC_BYTES], key, _ALL_PURPOSE, head)
    while len(data) >= found.end + _SIZE.size:
        (size,) = _SIZE.unpack_from(data, found.end)
        end = found.end + _SIZE.size + size
        record, mac = data[found.end : end], data[end : end + _MAC_BYTES]
        if size == 0 or not fits_mac(mac, key, _RECORD_PURPOSE, found.mac, record):
            break
        found.paths += record[_SIZE.size :].split(b"\0")
        found.end, found.mac = end + _MAC_BYTES, mac
    return found


def _head_of(manifest: Manifest) -> bytes:
    random = os.urandom(_RANDOM_BYTES)
    return _HEAD.pack(_MAGIC, manifest.volume_id, manifest.entry.encode("ascii"), manifest.counter, random)


def prepare_journal(volume: Volume) -> None:
    """Make the file, with room for records, before a manifest relies on it.

    A node that tdefs never makes there, such as a link or a FIFO, is moved away.

    :raises OSError: there may be no journal.
    :raises TdefsError: the directory is not tdefs's own.
    """
    with with_own_rights(), own_directory(volume.private, last_link=False) as directory:
        directory.remove_planted(JOURNAL_FILE)
        fd = directory.open(JOURNAL_FILE, os.O_WRONLY | os.O_CREAT)
        try:
            size = os.fstat(fd).st_size
            if size > _MAX_BYTES:
                # no reader goes so far
                os.ftruncate(fd, _MAX_BYTES)
            if size < PREPARED_BYTES:
                # written, not only allocated: then the sync of a record need not change the file's inode
                os.pwrite(fd, bytes(PREPARED_BYTES - size), size)
                os.fsync(fd)
                directory.sync()
        finally:
            os.close(fd)


def write_journal(volume: Volume, key: bytes, manifest: Manifest, changed: Changed) -> None:
    """Write what has *changed* since *manifest*, over the old journal.

    :raises OSError: it is not complete.
    :raises TdefsError: the directory is not tdefs's own.
    """
    journal = Journal(SystemCalls(), volume, key, manifest)
    try:
        if changed.everything:
            journal.end()
        elif changed.paths:
            journal.append(changed.paths)
    finally:
        journal.close()


class Journal:
    """The journal of the manifest that binds now, open for writing."""

    def __init__(self, calls: SystemCalls, volume: Volume, key: bytes, manifest: Manifest) -> None:
        """Go on with the journal that is there, or begin: from then on there may be files that no manifest knows.

        :raises OSError: it cannot be read or written.
        :raises UntrustedError: the directory is not tdefs's own.
        """
        self._calls = calls
        self._key = key
        prepare_journal(volume)
        with with_own_rights(), own_directory(volume.private, last_link=False) as directory:
            self._fd = directory.open(JOURNAL_FILE, os.O_RDWR)
        try:
            data = _read(self._fd)
            self._found = parse_journal(data, key, manifest)
            if self._found.begun:
                # the kernel would not write again what an earlier session wrote and could not sync
                self._put(data[: self._found.end])
            else:
                self._begin(volume, manifest)
            self._head = os.pread(self._fd, _HEAD.size, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, volume: Volume, manifest: Manifest) -> None:
        head = _head_of(manifest)
        mac = make_mac(self._key, _BEGIN_PURPOSE, head)
        # the journal of the manifest before is written over: after a power cut that manifest would come back if
        # the sync of the new one's name has failed
        with with_own_rights(), own_directory(volume.private, last_link=False) as directory:
            directory.sync()
        self._put((head + mac).ljust(_RECORDS_AT, b"\0"))
        self._found = Changed(begun=True, mac=mac)

    def _put(self, beginning: bytes) -> None:
        with with_own_rights():
            self._calls.pwrite("journal:begin", self._fd, beginning, 0)
            self._calls.fdatasync("journal:begin", self._fd)

    def append(self, paths: Sequence[bytes]) -> bool:
        """Note durably that *paths* are not bound any more; return whether any file still is.

        If there is no room for them, no file is.

        :raises OSError: nothing was noted, so nothing may be changed.
        """
        if self._found.everything:
            return False
        text = b"\0".join(paths)
        record = _SIZE.pack(len(text)) + text
        mac = make_mac(self._key, _RECORD_PURPOSE, self._found.mac, record)
        with with_own_rights():
            try:
                self._write(record + mac)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                self.end()
                log.error(
                    "the journal of changed files cannot be written, so no file is bound any more until the next "
                    "clean unmount: %s (%s; HINT: %s)",
                    error.strerror,
                    errno.errorcode[error.errno],
                    HINTS.get(error.errno, "raise the limit of the size of files"),
                )
                return False
        self._found.end += len(record) + _MAC_BYTES
        self._found.mac = mac
        return True

    def _write(self, record: bytes) -> None:
        if self._found.end + len(record) > _MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._calls.pwrite("journal:write", self._fd, record, self._found.end)
        self._calls.fdatasync("journal:sync", self._fd)

    def end(self) -> None:
        """Note durably that nothing is bound any more.

        :raises OSError: it was not noted.
        """
        with with_own_rights():
            everything = make_mac(self._key, _ALL_PURPOSE, self._head)
            self._calls.pwrite("journal:all", self._fd, everything, _ALL_AT)
            self._calls.fdatasync("journal:all", self._fd)
        self._found.everything = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _read(fd: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read(_MAX_BYTES)

"""The journal of changed files: what the manifest does not bind any more, durable before the change is made.

The file ``.tdefs/changed`` is made with its full size, and written to in place: a full disk does not keep anybody
from removing a file. ::

    0     8  magic "tdefsch1"
    8    16  volume id
    24    8  counter of the manifest that it belongs to, little-endian
    32   16  random
    48   32  MAC over the purpose string and these 48 bytes
    2048 32  the same MAC over another purpose string, if nothing is bound any more; else zero
    4096  …  records: number of bytes of paths (4 bytes), the paths with a zero byte between two, MAC

A record's MAC is over a purpose string, the MAC before it (the first time that at 48), and the record. So a record
cannot be forged, exchanged or left out, nor come from the journal of another manifest; what is cut off at the end
binds more, not less. A path that ends in "/" stands for a directory with all that is in it.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.fs.calls import SystemCalls
from tdefs.fs.reserve import with_own_rights
from tdefs.private import own_directory
from tdefs.volume import Volume

JOURNAL_FILE = "changed"
#: What is there from the beginning: room for some thousands of paths.
PREPARED_BYTES = 1 << 18

_MAGIC = b"tdefsch1"
_BEGIN_PURPOSE = b"tdefs v1 changed files"
_ALL_PURPOSE = b"tdefs v1 changed files: all"
_RECORD_PURPOSE = b"tdefs v1 changed files: record"
_HEAD = struct.Struct("<8s16sQ16s")
_MAC_BYTES = 32
_ALL_AT = 2048
_RECORDS_AT = 4096
_SIZE = struct.Struct("<I")
#: Of millions of paths. The journal may use what the disk keeps for root, which long names must not fill.
_MOST_BYTES = 1 << 28


@dataclass(slots=True)
class Changed:
    """What a journal says: ``paths`` that changed, or ``everything``; ``end`` and ``mac`` are where it goes on."""

    begun: bool = False
    everything: bool = False
    paths: list[bytes] = field(default_factory=list)
    end: int = _RECORDS_AT
    mac: bytes = b""


def read_journal(volume: Volume, key: bytes, counter: int) -> Changed:
    """Return what the journal of the manifest with *counter* says; nothing if there is none.

    Raises OSError, UntrustedError.
    """
    try:
        with own_directory(volume.private, last_link=False) as directory:
            data = directory.read_whole(JOURNAL_FILE, _MOST_BYTES)
    except FileNotFoundError:
        return Changed()
    return parse_journal(data, volume.volume_id, key, counter)


def parse_journal(data: bytes, volume_id: bytes, key: bytes, counter: int) -> Changed:
    """Return what the bytes of a journal say; nothing if they are not of the manifest with *counter*."""
    head, mac = data[: _HEAD.size], data[_HEAD.size : _HEAD.size + _MAC_BYTES]
    if len(head) < _HEAD.size or not _fits(key, mac, _BEGIN_PURPOSE, head):
        return Changed()
    magic, volume, belongs_to, _ = _HEAD.unpack(head)
    if (magic, volume, belongs_to) != (_MAGIC, volume_id, counter):
        return Changed()
    found = Changed(begun=True, mac=mac)
    found.everything = _fits(key, data[_ALL_AT : _ALL_AT + _MAC_BYTES], _ALL_PURPOSE, head)
    while len(data) >= found.end + _SIZE.size:
        (size,) = _SIZE.unpack_from(data, found.end)
        end = found.end + _SIZE.size + size
        record, mac = data[found.end : end], data[end : end + _MAC_BYTES]
        if size == 0 or not _fits(key, mac, _RECORD_PURPOSE, found.mac, record):
            break
        found.paths += record[_SIZE.size :].split(b"\0")
        found.end, found.mac = end + _MAC_BYTES, mac
    return found


def prepare_journal(volume: Volume) -> None:
    """See that the file is there, with room for what comes, before a manifest relies on it.

    Raises OSError, UntrustedError.
    """
    with with_own_rights(), own_directory(volume.private, last_link=False) as directory:
        fd = directory.open(JOURNAL_FILE, os.O_WRONLY | os.O_CREAT)
        try:
            size = os.fstat(fd).st_size
            if size < PREPARED_BYTES:
                # written, not only allocated: then a sync of a record need not change the file's own description
                os.pwrite(fd, bytes(PREPARED_BYTES - size), size)
                os.fsync(fd)
                directory.sync()
        finally:
            os.close(fd)


class Journal:
    """The journal of the manifest that binds now, open for writing."""

    def __init__(self, calls: SystemCalls, volume: Volume, key: bytes, counter: int) -> None:
        """Go on with what is there, or begin: from then on files may come that no manifest knows.

        Raises OSError, UntrustedError.
        """
        self._calls = calls
        self._key = key
        prepare_journal(volume)
        with own_directory(volume.private, last_link=False) as directory:
            self._fd = directory.open(JOURNAL_FILE, os.O_RDWR)
        try:
            size = os.fstat(self._fd).st_size
            self._found = parse_journal(os.pread(self._fd, size, 0), volume.volume_id, key, counter)
            if not self._found.begun:
                self._begin(volume.volume_id, counter)
            self._head = os.pread(self._fd, _HEAD.size, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, volume_id: bytes, counter: int) -> None:
        head = _HEAD.pack(_MAGIC, volume_id, counter, os.urandom(16))
        mac = _mac(self._key, _BEGIN_PURPOSE, head).finalize()
        with with_own_rights():
            self._calls.pwrite("journal:begin", self._fd, (head + mac).ljust(_RECORDS_AT, b"\0"), 0)
            self._calls.fdatasync("journal:begin", self._fd)
        self._found = Changed(begun=True, mac=mac)

    def append(self, paths: Sequence[bytes]) -> bool:
        """Note durably that *paths* are not bound any more; return whether anything still is.

        Where there is no room for them, nothing is.

        :raises OSError: nothing was noted, so nothing may be changed.
        """
        if self._found.everything:
            return False
        text = b"\0".join(paths)
        record = _SIZE.pack(len(text)) + text
        mac = _mac(self._key, _RECORD_PURPOSE, self._found.mac, record).finalize()
        with with_own_rights():
            try:
                self._write(record + mac)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                everything = _mac(self._key, _ALL_PURPOSE, self._head).finalize()
                self._calls.pwrite("journal:all", self._fd, everything, _ALL_AT)
                self._calls.fdatasync("journal:sync", self._fd)
                self._found.everything = True
                return False
        self._found.end += len(record) + _MAC_BYTES
        self._found.mac = mac
        return True

    def _write(self, record: bytes) -> None:
        if self._found.end + len(record) > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        self._calls.pwrite("journal:write", self._fd, record, self._found.end)
        self._calls.fdatasync("journal:sync", self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _fits(key: bytes, mac: bytes, *pieces: bytes) -> bool:
    try:
        _mac(key, *pieces).verify(mac)
    except InvalidSignature:
        return False
    return True


def _mac(key: bytes, *pieces: bytes) -> HMAC:
    mac = HMAC(key, SHA256())
    for piece in pieces:
        mac.update(piece)
    return mac

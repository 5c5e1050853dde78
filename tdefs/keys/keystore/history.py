"""The history of a keystore: an append-only file beside it, one line of JSON for each event, chained by MACs.

Each line ends in its MAC: HMAC-SHA256, under the history's own key, over a purpose string, the MAC before it
(32 zero bytes at the start), all lines since that one, and the line itself without the MAC. An event without
the key, such as a wrong secret, has ``null`` there, and the next MAC covers it. So no line can be changed, added
or removed without breaking a MAC, except lines after the last MAC, and whole lines removed at the end. Therefore
the lines are counted twice: up to the keystore's last change by the anchor in the keystore, and up to the newest
MAC by the head, a small file beside the history that has a MAC of its own. A head that the history contradicts
stays as it is, so that it shows what was removed until the keystore is changed; the record of that change says it
for good.

The head also makes appending cheap: it says how many lines there are up to a MAC near the end, so only what comes
after that MAC is read. What the history says, and whether it is as it was written, is in history_checking.py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from tdefs.errors import TdefsError, naming
from tdefs.keys import fields
from tdefs.keys.keystore.history_checking import (
    HistoryFiles,
    head_fault,
    head_line,
    last_mac,
    make_line_mac,
    read_head,
    read_line,
)
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.private import OwnDirectory, own_place
from tdefs.users import acting_user

_MAX_HEAD_BYTES = 1024
#: Of some hundred thousands of records.
_MOST_BYTES = 1 << 28
#: What is read of the end at first: some hundreds of records.
_TAIL_BYTES = 1 << 16
_LOCK_SECONDS = 5
_LOCK_PAUSE_SECONDS = 0.01


def history_path(keystore: Path) -> Path:
    """Return where the history of a keystore lies."""
    return keystore.with_name(f"{keystore.name}.history")


def head_path(keystore: Path) -> Path:
    """Return where the head of a keystore's history lies."""
    history = history_path(keystore)
    return history.with_name(f"{history.name}.head")


# --- reading them


def read_history(keystore: Path) -> HistoryFiles:
    """Return the files as they are.

    :raises OSError: one of them cannot be read.
    :raises TdefsError: FILE_UNTRUSTED.
    """
    return HistoryFiles(
        _read_beside(keystore, history_path(keystore), whole=True),
        _read_beside(keystore, head_path(keystore), whole=False),
    )


def _read_beside(keystore: Path, path: Path, *, whole: bool) -> bytes:
    """Return the content of a file beside a keystore; nothing if there is none."""
    try:
        with own_place(path, keeper=keystore.name) as directory:
            if whole:
                return directory.read_whole(path.name, _MOST_BYTES)
            return directory.read(path.name, _MAX_HEAD_BYTES)
    except FileNotFoundError:
        return b""


# --- writing them


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a history: how many lines it has, its last MAC, and the lines after that.

    ``torn`` is whether a crash has left a last line without its end; ``fits_head`` whether the head agrees.
    """

    count: int
    mac: bytes
    pending: bytes
    torn: bool
    fits_head: bool


def append(
    keystore: Path, event: str, what: Mapping[str, str | int | None], key: bytes | None, *, new_head: bool = False
) -> tuple[int, bytes]:
    """Write down one event, durably; return how many records there are now, and the last MAC among them.

    What this costs does not depend on how long the history is, unless the head contradicts it.

    :param what: is shown to everybody who may read the keystore, and has no secret.
    :param key: the history's key; ``None`` for an event without it.
    :param new_head: whether the head is written even if the history contradicts the old one, which *what* then
        says. All lines are counted for this.
    :raises OSError: the event was not written.
    :raises TdefsError: FILE_UNTRUSTED.
    """
    path = history_path(keystore)
    with ExitStack() as stack:
        directory = stack.enter_context(own_place(path, keeper=keystore.name))
        descriptor = directory.open(path.name, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        stack.callback(os.close, descriptor)
        _lock(descriptor, path)
        directory.give(descriptor)
        head, trouble = b"", None
        if not new_head:
            try:
                head = _read_beside(keystore, head_path(keystore), whole=False)
            except (OSError, TdefsError) as error:
                trouble = error  # the record is written nevertheless
        with naming(path):
            size = os.fstat(descriptor).st_size
            end = _read_end(descriptor, size, head, key)
        record = {
            "n": end.count + 1,
            "time": fields.show_time(now()),
            "event": event,
            "who": acting_user(),
            "what": {name: value for name, value in what.items() if value is not None},
        }
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode("ascii")[:-1]
        if key is None:
            mac = end.mac
            line = body + b',"mac":null}\n'
        else:
            mac = make_line_mac(key, end.mac, end.pending, body)
            line = body + b',"mac":"' + mac.hex().encode("ascii") + b'"}\n'
        if end.torn:
            line = b"\n" + line
        with naming(path):
            if os.write(descriptor, line) != len(line):
                # a full disk took a part; the keystore must not count a record that is not there
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        if key is not None and trouble is not None:
            raise trouble
        if key is not None and (new_head or end.fits_head):
            _write_head(directory, head_path(keystore), key, end.count + 1, mac)
        if not size:
            directory.sync()
    return end.count + 1, mac


def _read_end(descriptor: int, size: int, head_data: bytes, key: bytes | None) -> _End:
    """Return the end of the history, of which no more is read than is needed.

    The line with the head's MAC is looked for from the end. It has the head's number if the head is authentic.
    If it is not found all lines are read: the head is missing or forged, or lines were removed. (Without *key* the
    head cannot be checked. Then the number of the record may be wrong, which has no MAC either.)
    """
    if size > _MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    head = read_head(head_data)
    if head is not None and key is not None and not head.is_authentic(key):
        head = None
    length = min(_TAIL_BYTES, size) if head is not None else size
    while True:
        data = _read(descriptor, size - length, length)
        torn = bool(data) and not data.endswith(b"\n")
        lines = BytesIO(data + b"\n" if torn else data).readlines()
        if length == size:
            fits = key is not None and not head_fault(head_data, key, lines)
            return _End(len(lines), *last_mac(lines), torn, fits)
        at = _find_mac(lines[1:], head.mac) if head is not None else None  # the first may be the end of a line
        if head is not None and at is not None:
            lines = lines[1 + at :]
            return _End(head.count + len(lines) - 1, *last_mac(lines), torn, fits_head=True)
        length = min(2 * length, size)


def _find_mac(lines: list[bytes], mac: bytes) -> int | None:
    end = b',"mac":"' + mac.hex().encode("ascii") + b'"}\n'
    return next((at for at, line in enumerate(lines) if line.endswith(end) and read_line(line)), None)


def _read(descriptor: int, start: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        block = os.pread(descriptor, length - len(data), start + len(data))
        if not block:
            break
        data += block
    return data


def _write_head(directory: OwnDirectory, path: Path, key: bytes, count: int, mac: bytes) -> None:
    line = head_line(key, count, mac)
    descriptor = directory.open(path.name, os.O_WRONLY | os.O_CREAT)
    try:
        directory.give(descriptor)
        with naming(path):
            if os.pwrite(descriptor, line, 0) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.ftruncate(descriptor, len(line))
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    """Lock the file. This takes an instant, unless somebody who may read it holds it: nobody waits for that.

    :raises OSError: EAGAIN.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                what = f"another process has held its lock for {_LOCK_SECONDS} s"
                raise OSError(errno.EAGAIN, what, str(path)) from None
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return

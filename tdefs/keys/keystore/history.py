"""The history of a keystore: an append-only file beside it, one line of JSON for each event, chained by a MAC.

Each line ends in its MAC: HMAC-SHA256, under the history's own key, over a purpose string, the MAC before it
(32 zero bytes at the start), all lines since that one, and the line itself without the MAC. An event without
the key, such as a wrong secret, has ``null`` there, and the next MAC covers it. So no line can be changed, added
or removed without breaking a MAC, but for those after the last MAC and whole lines at the end. These are counted
twice: up to the keystore's last change by the anchor in the keystore, and up to the newest MAC by the head, a
small file beside the history that has a MAC of its own. A head that the history contradicts stays as it is, so
that it tells of what was removed until the keystore is changed; the record of that change tells of it for good.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.errors import naming
from tdefs.keys import fields
from tdefs.keys.keystore.entries import MAC_BYTES, HistoryAnchor
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.private import OwnDirectory, own_place
from tdefs.users import acting_user

_PURPOSE = b"tdefs v1 history record"
_HEAD_PURPOSE = b"tdefs v1 history head"
_START = bytes(MAC_BYTES)
_LINE = re.compile(rb'(\{.*),"mac":(?:null|"([0-9a-f]{64})")\}', re.ASCII)
# of one length, so that it is written in one piece, in its place
_HEAD = re.compile(rb"([0-9]{20}) ([0-9a-f]{64}) ([0-9a-f]{64})\n", re.ASCII)
_MAX_HEAD_BYTES = 1024
#: Of some hundred thousands of records.
_MOST_BYTES = 1 << 28
_LOCK_SECONDS = 5
_LOCK_PAUSE_SECONDS = 0.01


def history_path(keystore: Path) -> Path:
    """Return where the history of a keystore lies."""
    return keystore.with_name(f"{keystore.name}.history")


def head_path(keystore: Path) -> Path:
    """Return where the head of a keystore's history lies."""
    history = history_path(keystore)
    return history.with_name(f"{history.name}.head")


def append(
    keystore: Path,
    event: str,
    what: Mapping[str, str | int | None],
    key: bytes | None,
    *,
    new_head: bool = False,
) -> tuple[int, bytes]:
    """Write down one event, durably; return how many records there are now, and the last MAC among them.

    ``what`` is shown to whoever may read the keystore, and has no secret. With ``new_head`` the head is written
    even if the history contradicts the old one, which ``what`` then tells. Raises OSError;
    TdefsError(FILE_UNTRUSTED).
    """
    path = history_path(keystore)
    with ExitStack() as stack:
        directory = stack.enter_context(own_place(path, keeper=keystore.name))
        descriptor = directory.open(path.name, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        stack.callback(os.close, descriptor)
        _lock(descriptor, path)
        directory.give(descriptor)
        with naming(path):
            data = _read(descriptor)
        # the end of a line that a crash tore
        mend = b"" if data.endswith(b"\n") or not data else b"\n"
        lines = BytesIO(data + mend).readlines()
        last, pending = _last_mac(lines)
        record = {
            "n": len(lines) + 1,
            "time": fields.show_time(now()),
            "event": event,
            "who": acting_user(),
            "what": {name: value for name, value in what.items() if value is not None},
        }
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode("ascii")[:-1]
        if key is None:
            line = body + b',"mac":null}\n'
        else:
            last = _mac(key, last, pending, body).finalize()
            line = body + b',"mac":"' + last.hex().encode("ascii") + b'"}\n'
        with naming(path):
            if os.write(descriptor, mend + line) != len(mend + line):
                # a full disk took a part; the keystore must not count a record that is not there
                os.ftruncate(descriptor, len(data))
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        if key is not None and (new_head or not _head_fault(_read_head(keystore), key, lines)):
            _write_head(directory, head_path(keystore), key, len(lines) + 1, last)
        if not data:
            directory.sync()
    return len(lines) + 1, last


def _lock(descriptor: int, path: Path) -> None:
    """Lock the file, which takes an instant, unless somebody who may read it holds it: nobody waits for that.

    Raises OSError(EAGAIN).
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


def _write_head(directory: OwnDirectory, path: Path, key: bytes, count: int, last: bytes) -> None:
    body = b"%020d %s" % (count, last.hex().encode("ascii"))
    line = body + b" " + _head_mac(key, body).finalize().hex().encode("ascii") + b"\n"
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


def _read_head(keystore: Path) -> bytes:
    """Return the head's file; nothing if there is none. Raises OSError."""
    return _read_beside(keystore, head_path(keystore), _MAX_HEAD_BYTES)


def _read_beside(keystore: Path, path: Path, most: int | None) -> bytes:
    """Return the content of a file beside a keystore, at *most* so much; nothing if there is none.

    Raises OSError, TdefsError.
    """
    try:
        with own_place(path, keeper=keystore.name) as directory:
            if most is None:
                return directory.read_whole(path.name, _MOST_BYTES)
            return directory.read(path.name, most)
    except FileNotFoundError:
        return b""


def _head_fault(head: bytes, key: bytes, lines: list[bytes]) -> str:
    """Return how the head and the lines of a history contradict each other, or nothing."""
    if not head:
        # a crash may come between the first record and the first head
        with_mac = sum(b',"mac":"' in line for line in lines)
        return "the file that counts the records is missing" if with_mac > 1 else ""
    match = _HEAD.fullmatch(head)
    body = head.rpartition(b" ")[0]
    if match is None or not _fits(_head_mac(key, body), bytes.fromhex(match[3].decode("ascii"))):
        return "the file that counts the records is not as it was written"
    count = int(match[1])
    if len(lines) < count:
        return f"there are {len(lines)} records, and there were {count}"
    if _last_mac(lines[:count])[0].hex().encode("ascii") != match[2]:
        return f"line {count} is not the one that was there"
    return ""


@dataclass
class History:
    """What was read: ``records`` as their JSON objects, and ``findings``, what must not be, in words.

    ``notes`` are what is no sign of foul play. ``by_key`` are those of the records that were written with the
    history's key; anybody could add another one, and the next MAC would cover it.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_key: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class HistoryFiles:
    """The content of the two files, each empty if it is not there."""

    lines: bytes
    head: bytes


def read_history(keystore: Path) -> HistoryFiles:
    """Return the files as they are. Raises OSError; TdefsError(FILE_UNTRUSTED)."""
    return HistoryFiles(_read_beside(keystore, history_path(keystore), None), _read_head(keystore))


def check_history(files: HistoryFiles, key: bytes | None, anchor: HistoryAnchor | None, revision: int) -> History:
    """Read the history; check it if there is a ``key``, against what the keystore's ``anchor`` says."""
    found = History()
    lines = BytesIO(files.lines).readlines()
    mac, pending, first = _START, b"", 1
    anchored = _START
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.rstrip(b"\n"))
        record = _parse(match[1] + b"}") if match else None
        if record is None:
            found.notes.append(f"line {number} is no record; a crash may have torn it")
        else:
            found.records.append(record)
            if match is not None and match[2] is not None:
                found.by_key.append(record)
            if "lacking" in record["what"]:
                lacking = record["what"]["lacking"]
                found.notes.append(f"before record {record['n']} the history was not as it was written: {lacking}")
        if match is None or match[2] is None:
            pending += line
        else:
            noted = bytes.fromhex(match[2].decode("ascii"))
            if key is not None and not _fits(_mac(key, mac, pending, match[1]), noted):
                span = f"line {number} is" if first == number else f"lines {first} to {number} are"
                found.findings.append(f"{span} not as written")
            mac, pending, first = noted, b"", number + 1
        if anchor is not None and number == anchor.count:
            anchored = mac
    if key is not None and anchor is not None:
        if len(lines) < anchor.count:
            found.findings.append(
                f"there are {len(lines)} records, and there were {anchor.count} when the keystore was last changed"
            )
        elif anchored != anchor.mac:
            found.findings.append(f"line {anchor.count} is not the one of when the keystore was last changed")
        if not found.findings and (fault := _head_fault(files.head, key, lines)):
            found.findings.append(fault)
        if pending:
            found.notes.append(f"what follows line {first - 1} is not covered by a MAC yet")
        found.notes += _unfinished(found.records, revision)
    return found


def records_under(files: HistoryFiles, key: bytes, event: str) -> Iterator[dict[str, Any]]:
    """Yield the records of an event that have a MAC of their own, made with *key*: nobody else wrote these."""
    mac, pending = _START, b""
    for line in BytesIO(files.lines):
        match = _LINE.fullmatch(line.rstrip(b"\n"))
        if match is None or match[2] is None:
            pending += line
            continue
        noted = bytes.fromhex(match[2].decode("ascii"))
        if _fits(_mac(key, mac, pending, match[1]), noted):
            record = _parse(match[1] + b"}")
            if record is not None and record["event"] == event:
                yield record
        mac, pending = noted, b""


def _unfinished(records: list[dict[str, Any]], revision: int) -> list[str]:
    """Tell of changes that were written down and then stopped before the keystore had them."""
    latest: dict[int, int] = {}
    notes = []
    for record in records:
        made = record["what"].get("revision")
        if isinstance(made, int):
            if made in latest:
                notes.append(f"the change of record {latest[made]} was stopped before it took effect")
            latest[made] = record["n"]
    notes += [
        f"the change of record {number} was stopped before it took effect, or the keystore is an older one"
        for made, number in latest.items()
        if made > revision
    ]
    return notes


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and record.keys() == {"n", "time", "event", "who", "what"}
    if not whole or not isinstance(record["who"], dict) or not isinstance(record["what"], dict):
        return None
    return dict(record)


def _last_mac(lines: list[bytes]) -> tuple[bytes, bytes]:
    """Return the last MAC, and all that comes after its line."""
    for at in range(len(lines) - 1, -1, -1):
        match = _LINE.fullmatch(lines[at].rstrip(b"\n"))
        if match and match[2]:
            return bytes.fromhex(match[2].decode("ascii")), b"".join(lines[at + 1 :])
    return _START, b"".join(lines)


def _mac(key: bytes, before: bytes, pending: bytes, body: bytes) -> HMAC:
    mac = HMAC(key, SHA256())
    mac.update(_PURPOSE + before + pending + body)
    return mac


def _head_mac(key: bytes, body: bytes) -> HMAC:
    mac = HMAC(key, SHA256())
    mac.update(_HEAD_PURPOSE + body)
    return mac


def _fits(mac: HMAC, noted: bytes) -> bool:
    try:
        mac.verify(noted)
    except InvalidSignature:
        return False
    return True


def _read(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > _MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    data = b""
    while len(data) < size:
        block = os.pread(descriptor, size - len(data), len(data))
        if not block:
            break
        data += block
    return data

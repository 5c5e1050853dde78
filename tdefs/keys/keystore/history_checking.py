"""What the history of a keystore says, and whether it is as it was written (see history.py)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from tdefs.keys.keystore.entries import MAC_BYTES, HistoryAnchor
from tdefs.keys.wrapping import fits_mac, make_mac

#: What stands for the MAC before the first one.
_START = bytes(MAC_BYTES)

_PURPOSE = b"tdefs v1 history record"
_HEAD_PURPOSE = b"tdefs v1 history head"
_LINE = re.compile(rb'(\{.*),"mac":(?:null|"([0-9a-f]{64})")\}', re.ASCII)
# of one length, so that it is written in one piece, in its place
_HEAD = re.compile(rb"([0-9]{20}) ([0-9a-f]{64}) ([0-9a-f]{64})\n", re.ASCII)


@dataclass(frozen=True)
class HistoryFiles:
    """The content of the two files, each empty if it is not there."""

    lines: bytes
    head: bytes


# --- what the two files have in them


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the history: its ``body``, a JSON object but for the last brace, and its MAC, if it has one."""

    body: bytes
    mac: bytes | None


def read_line(line: bytes) -> Line | None:
    """Return what a line says; ``None`` for one that tdefs never writes, such as one torn by a crash."""
    match = _LINE.fullmatch(line.rstrip(b"\n"))
    if match is None:
        return None
    return Line(match[1], None if match[2] is None else bytes.fromhex(match[2].decode("ascii")))


def make_line_mac(key: bytes, before: bytes, pending: bytes, body: bytes) -> bytes:
    """Return the MAC of a line, after the MAC *before* and the lines *pending*."""
    return make_mac(key, _PURPOSE, before, pending, body)


def fits_line(line: Line, key: bytes, before: bytes, pending: bytes) -> bool:
    """Return whether the MAC of *line* was made with *key*, after the MAC *before* and the lines *pending*."""
    return line.mac is not None and fits_mac(line.mac, key, _PURPOSE, before, pending, line.body)


@dataclass(frozen=True, slots=True)
class Head:
    """What the head says: ``count`` lines up to and with the one with ``mac``; ``proof`` is the head's own MAC."""

    count: int
    mac: bytes
    proof: bytes

    def is_authentic(self, key: bytes) -> bool:
        """Return whether it was written with the history's key."""
        return fits_mac(self.proof, key, _HEAD_PURPOSE, _head_body(self.count, self.mac))


def head_fault(data: bytes, key: bytes, lines: list[bytes]) -> str:
    """Return how the head, whose file has *data*, and the lines of a history contradict each other, or nothing."""
    if not data:
        # a crash may come between the first record and the first head
        with_mac = sum(b',"mac":"' in line for line in lines)
        return "the file that counts the records is missing" if with_mac > 1 else ""
    head = read_head(data)
    if head is None or not head.is_authentic(key):
        return "the file that counts the records is not as it was written"
    if len(lines) < head.count:
        return f"there are {len(lines)} records, and there were {head.count}"
    if last_mac(lines[: head.count])[0] != head.mac:
        return f"line {head.count} is not the one that was there"
    return ""


def read_head(data: bytes) -> Head | None:
    """Return what the head's file says; ``None`` if it is no head."""
    match = _HEAD.fullmatch(data)
    if match is None:
        return None
    return Head(int(match[1]), bytes.fromhex(match[2].decode("ascii")), bytes.fromhex(match[3].decode("ascii")))


def head_line(key: bytes, count: int, mac: bytes) -> bytes:
    """Return the content of the head's file."""
    body = _head_body(count, mac)
    return body + b" " + make_mac(key, _HEAD_PURPOSE, body).hex().encode("ascii") + b"\n"


def _head_body(count: int, mac: bytes) -> bytes:
    return b"%020d %s" % (count, mac.hex().encode("ascii"))


def last_mac(lines: list[bytes]) -> tuple[bytes, bytes]:
    """Return the last MAC, and all that comes after its line."""
    for at in range(len(lines) - 1, -1, -1):
        line = read_line(lines[at])
        if line is not None and line.mac is not None:
            return line.mac, b"".join(lines[at + 1 :])
    return _START, b"".join(lines)


# --- checking


@dataclass
class History:
    """What was read: ``records`` as their JSON objects, and ``findings``, which say in words what must not be.

    ``notes`` are what is no sign of an attack. ``by_key`` are the records with a MAC of their own, made with the
    history's key: anybody could add a record without one, and the next MAC would cover it.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_key: list[dict[str, Any]] = field(default_factory=list)


def check_history(files: HistoryFiles, key: bytes | None, anchor: HistoryAnchor | None, revision: int) -> History:
    """Return what the history says; check it if there is a *key*, against what the keystore's *anchor* says.

    :param revision: that of the keystore; a change with a higher one was stopped.
    """
    found = History()
    lines = BytesIO(files.lines).readlines()
    mac, pending, first = _START, b"", 1
    anchored = _START
    for number, text in enumerate(lines, 1):
        line = read_line(text)
        record = _parse(line.body + b"}") if line is not None else None
        if record is None:
            found.notes.append(f"line {number} is not a record; a crash may have torn it")
        else:
            found.records.append(record)
            if "lacking" in record["what"]:
                lacking = record["what"]["lacking"]
                found.notes.append(f"before record {record['n']} the history was not as it was written: {lacking}")
        if line is None or line.mac is None:
            pending += text
        else:
            if key is not None and not fits_line(line, key, mac, pending):
                span = f"line {number} is" if first == number else f"lines {first} to {number} are"
                found.findings.append(f"{span} not as written")
            elif key is not None and record is not None:
                found.by_key.append(record)
            mac, pending, first = line.mac, b"", number + 1
        if anchor is not None and number == anchor.count:
            anchored = mac
    if key is not None and anchor is not None:
        if len(lines) < anchor.count:
            found.findings.append(
                f"there are {len(lines)} records, and there were {anchor.count} when the keystore was last changed"
            )
        elif anchored != anchor.mac:
            found.findings.append(f"line {anchor.count} is not the one of when the keystore was last changed")
        if not found.findings and (fault := head_fault(files.head, key, lines)):
            found.findings.append(fault)
        if pending:
            found.notes.append(f"what follows line {first - 1} is not covered by a MAC yet")
        found.notes += _unfinished(found.records, revision)
    return found


def _unfinished(records: list[dict[str, Any]], revision: int) -> list[str]:
    """Return a note for each change that was written down and then stopped before the keystore had it."""
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

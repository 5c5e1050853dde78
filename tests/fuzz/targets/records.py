"""Targets: what tdefs writes down of a volume, what its daemon is asked, and what it reads of PostgreSQL's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from tdefs.daemon.control_server import reply_to
from tdefs.errors import Exit, TdefsError
from tdefs.pg.control import BadControlFile, UnknownControlVersion, parse_control_file
from tdefs.pg.pages import PAGE_SIZE, bad_pages
from tdefs.pg.settings import parse_settings
from tdefs.policy.paths import FIRST_NORMAL_OBJECT_ID, MAX_OID, Kind, classify, database_directory
from tdefs.volume.description import parse_description, remembers_truly
from tdefs.volume.session_record import parse_session
from tests.fuzz.contract import Target, expect, expect_line, refusal
from tests.fuzz.mending import edited, with_crc

_TESTS = Path(__file__).resolve().parents[2]
_PG_DATA = _TESTS / "unit/pg/data"
_CRC_AT = (288, 292)
_NOT_EDITED = b"\0"
_DESCRIPTION = {
    "format_version": 2,
    "volume_id": bytes(range(16)).hex(),
    "keystore": "/k",
    "keystore_mac": bytes(range(32)).hex(),
}
_SESSION = {
    "pid": 1,
    "mountpoint": "/mnt",
    "clean": True,
    "plain_files": False,
    "policy": bytes(range(32)).hex(),
    "volume": "vol_1",
    "number": 1,
    "id": bytes(range(16)).hex(),
    "mac": bytes(range(32)).hex(),
}
_KEY = bytes(range(32))


def _json(data: bytes, genuine: object) -> bytes:
    """The bytes themselves, or a genuine object with members changed."""
    return data[1:] if data[:1] == _NOT_EDITED else json.dumps(edited(genuine, data[1:])).encode()


def _description(data: bytes) -> str:
    try:
        volume = parse_description(_json(data, _DESCRIPTION), Path("volume.json"), Path("/backing"))
    except TdefsError as error:
        return refusal(error, Exit.VOLUME_DAMAGED)
    volume.keystore.exists()  # a system call takes it
    expect(not remembers_truly(volume, _KEY), "a description without a MAC is believed")
    expect(len(volume.volume_id) == 16, "a volume id has another length")
    return "accepted"


def _session(data: bytes) -> str:
    session = parse_session(_json(data, _SESSION))
    if session is None:
        return "refused"
    f"{session.pid}{session.mountpoint}".encode("utf-8", "backslashreplace")
    expect(not session.is_authentic(_KEY), "a record without a MAC is believed")
    return "accepted"


def _control(data: bytes) -> str:
    asked: list[str] = []

    async def answer(_asked: Mapping[str, Any]) -> dict[str, Any]:
        asked.append("status")
        return {"pid": 1}

    reply = trio.run(reply_to, data, {"status": answer})
    json.dumps(reply)
    expect(reply == ({"pid": 1} if asked else {"error": "unknown request"}), "another reply")
    return "answered" if asked else "refused"


def _path(data: bytes) -> str:
    path = data.decode("utf-8", "surrogateescape")
    role = classify(path)
    expect(isinstance(role.kind, Kind), "a kind that is none")
    relation = role.relation
    expect(relation is not None or role.kind not in (Kind.RELATION, Kind.CATALOG), "a relation without a number")
    if relation is not None:
        expect(0 <= relation.database <= MAX_OID and 0 < relation.relfilenode <= MAX_OID, "no OID")
        expect(0 <= relation.segment <= MAX_OID, "no segment")
        if role.kind != Kind.TEMP:
            expect((relation.relfilenode < FIRST_NORMAL_OBJECT_ID) == (role.kind == Kind.CATALOG), "another kind")
            fork = "" if relation.fork == "main" else f"_{relation.fork}"
            segment = f".{relation.segment}" if relation.segment else ""
            expect(path.endswith(f"{relation.relfilenode}{fork}{segment}"), "one relation file has two names")
    database = database_directory(path)
    expect(database is None or relation is None or database == relation.database, "two databases")
    # a directory above changes nothing about what PostgreSQL's own directories hold
    if database is not None:
        expect(classify(f"15/main/{path}") == role, "the mount point changes the kind")
    return role.kind


def _pg_control(data: bytes) -> str:
    mode, content = data[:1], data[1:]
    if mode in (b"\1", b"\2"):
        content = with_crc(content, _CRC_AT[mode[0] - 1])
    try:
        control = parse_control_file(content)
    except (BadControlFile, UnknownControlVersion) as error:
        expect_line(error)
        return type(error).__name__
    expect(control.page_size >= 0 and control.segment_pages >= 0, "a size below zero")
    return "accepted"


def _settings(data: bytes) -> str:
    found = list(parse_settings(data.decode("utf-8", "replace")))
    expect(all(name == name.lower() for name, _ in found), "a name with capitals")
    return "some" if found else "none"


def _pages(data: bytes) -> str:
    pages = (data[1:] * (PAGE_SIZE // max(1, len(data) - 1) + 1))[: PAGE_SIZE + 77]
    pages = data[1:17] + pages[16:]
    found = list(bad_pages(pages, 7, checksums=data[:1] == b"\1"))
    expect(
        len(found) <= 1 and all(page.block == 7 and page.reason.isprintable() for page in found), "another page"
    )
    return "bad" if found else "good"


def _json_seeds(genuine: object) -> list[bytes]:
    text = json.dumps(genuine).encode()
    edits = [bytes([1, place, action, place // 4]) for place in range(0, 256, 16) for action in range(4)]
    return [_NOT_EDITED + text, _NOT_EDITED + b"[" * 300, _NOT_EDITED + b'{"pid": Infinity}', b"\1", *edits]


def _path_seeds() -> list[bytes]:
    lines = (_TESTS / "unit/policy/pgdata_paths.txt").read_text().splitlines()
    return [line.split()[-1].encode() for line in lines if line.strip() and not line.startswith("#")]


def _pg_control_seeds() -> list[bytes]:
    contents = [path.read_bytes()[:512] for path in sorted(_PG_DATA.glob("*.pg_control"))]
    return [bytes([mode]) + content for content in contents for mode in range(3)]


def _settings_seeds() -> list[bytes]:
    return [
        b"fsync = on # why\nwork_mem '1''2\\'3'\ninclude 'x'\n a.b=1\n",
        b"x = 'open",
        b"a" + b" " * 100 + b"'",
    ]


_JSON_WORDS = (
    b'"request"',
    b'"status"',
    b'"format_version"',
    b'"volume_id"',
    b'"keystore"',
    b'"\\ud800"',
    b"1e999",
    b"NaN",
)
_PATH_WORDS = tuple(
    word.encode()
    for word in (
        *(
            "base/",
            "global/",
            "pg_wal/",
            "pg_xact/",
            "pg_tblspc/",
            "PG_15_202209061/",
            "pgsql_tmp",
            "pg_replslot/",
        ),
        *(
            "_fsm",
            "_vm",
            "_init",
            ".1",
            "16384",
            "4294967295",
            "4294967296",
            "pg_control",
            "pg_filenode.map",
            "t3_",
            ".",
        ),
        *("000000010000000000000001", ".history", "archive_status/", ".ready", "/", "\n", "\0"),
    )
)

TARGETS = (
    Target("volume_description", _description, lambda: _json_seeds(_DESCRIPTION), 512, _JSON_WORDS),
    Target("session_record", _session, lambda: _json_seeds(_SESSION), 512, _JSON_WORDS),
    Target(
        "control_request",
        _control,
        lambda: [b'{"request": "status"}\n', b"[" * 4096, b'{"request": []}'],
        4200,
        _JSON_WORDS,
    ),
    Target("path", _path, _path_seeds, 300, _PATH_WORDS),
    Target("pg_control", _pg_control, _pg_control_seeds, 600),
    Target("settings", _settings, _settings_seeds, 2000),
    Target(
        "page",
        _pages,
        lambda: [b"\0" + bytes(40), b"\1" + (_PG_DATA / "pg15_pg_class_block_3.page").read_bytes()[:400]],
        500,
    ),
)

"""The promises of keystore.history: what was written down cannot be changed, added or removed unseen."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.keys.keystore import history
from tdefs.keys.keystore.entries import HistoryAnchor
from tdefs.keys.keystore.history import append, head_path, history_path, read_history
from tdefs.keys.keystore.history_checking import History, HistoryFiles, check_history
from tdefs.private import UntrustedError
from tests.unit.keys.keystore_samples import GOLDEN, private_copy

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
EMPTY = HistoryAnchor("mk_1", bytes(60), 0, bytes(32))


@pytest.fixture(params=[1 << 16, 300], ids=["read as a whole", "read from its end"], autouse=True)
def tail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds where the whole history is what is read first, and where that is one or two lines."""
    monkeypatch.setattr(history, "_TAIL_BYTES", request.param)


@pytest.fixture
def keystore(tmp_path: Path) -> Path:
    return private_copy(GOLDEN, tmp_path / "keystore")


@pytest.fixture
def anchor(keystore: Path) -> HistoryAnchor:
    """Six records, of which the third and the fourth are failures; anchored at the fifth."""
    append(keystore, "unlock", {"command": "mount"}, KEY)
    append(keystore, "key rotate", {"key": "dk_1", "revision": 2}, KEY)
    append(keystore, "unlock failed", {"error": "WRONG_SECRET"}, None)
    append(keystore, "unlock failed", {"error": "WRONG_SECRET"}, None)
    count, mac = append(keystore, "key revoke", {"key": "dk_1", "round": None, "revision": 3}, KEY)
    append(keystore, "unlock", {"command": "cat"}, KEY)
    return replace(EMPTY, count=count, mac=mac)


def check(keystore: Path, anchor: HistoryAnchor, *, key: bytes = KEY, revision: int = 3) -> History:
    return check_history(read_history(keystore), key, anchor, revision)


def test_records_say_when_who_and_what(
    keystore: Path, anchor: HistoryAnchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check(keystore, anchor)
    assert (found.findings, found.notes) == ([], [])
    assert [record["n"] for record in found.records] == [1, 2, 3, 4, 5, 6]
    assert found.records[4]["event"] == "key revoke"
    assert found.records[4]["what"] == {"key": "dk_1", "revision": 3}
    assert found.records[0]["who"].keys() >= {"user", "host"}
    monkeypatch.setenv("SUDO_UID", "0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    append(keystore, "unlock", {}, KEY)
    assert check(keystore, anchor).records[-1]["who"]["sudo_user"] == "root"
    monkeypatch.setattr(os, "geteuid", lambda: 4711)  # then anybody could have set it
    append(keystore, "unlock", {}, KEY)
    assert "sudo_user" not in check(keystore, anchor).records[-1]["who"]


def test_history_is_its_owners_alone(keystore: Path, anchor: HistoryAnchor) -> None:
    assert stat.S_IMODE(history_path(keystore).stat().st_mode) == 0o600


def test_any_changed_bit_shows(keystore: Path, anchor: HistoryAnchor) -> None:
    files = read_history(keystore)
    for place in range(len(files.lines) - 1):
        assert check_history(HistoryFiles(flipped(files.lines, place), files.head), KEY, anchor, 3).findings, place
    for place in range(len(files.head)):
        assert check_history(HistoryFiles(files.lines, flipped(files.head, place)), KEY, anchor, 3).findings, place


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def without(*numbers: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line for number, line in enumerate(lines, 1) if number not in numbers]


def exchanged(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def doubled(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[1], *lines[2:]]


def with_a_forged_failure(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2], *lines[2:]]


@pytest.mark.parametrize(
    "change",
    [
        *(without(number) for number in (1, 2, 3, 4, 5, 6)),
        without(3, 4),
        without(5, 6),
        without(2, 3, 4, 5, 6),
        without(1, 2, 3, 4, 5, 6),
        exchanged,
        doubled,
        with_a_forged_failure,
    ],
)
def test_removed_added_or_moved_record_shows(
    keystore: Path, anchor: HistoryAnchor, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    lines = read_history(keystore).lines.splitlines(keepends=True)
    history_path(keystore).write_bytes(b"".join(change(lines)))
    assert check(keystore, anchor).findings


def test_history_rewritten_without_the_key_or_from_elsewhere_shows(keystore: Path, anchor: HistoryAnchor) -> None:
    assert check(keystore, anchor, key=OTHER_KEY).findings
    start_anew(keystore)
    for _ in range(6):
        append(keystore, "unlock", {}, OTHER_KEY)
    assert check(keystore, anchor).findings
    start_anew(keystore)
    for _ in range(6):
        append(keystore, "unlock", {}, KEY)  # of the same key, from a copy of the volume
    (finding,) = check(keystore, anchor).findings
    assert "line 5 is not the one" in finding


def test_failures_at_the_end_are_not_covered_until_the_next_unlock(keystore: Path, anchor: HistoryAnchor) -> None:
    append(keystore, "unlock failed", {}, None)
    assert check(keystore, anchor).notes == ["what follows line 6 is not covered by a MAC yet"]
    append(keystore, "unlock", {}, KEY)
    assert check(keystore, anchor).notes == []


def test_line_torn_by_a_crash_is_ended_and_noted(keystore: Path, anchor: HistoryAnchor) -> None:
    whole = read_history(keystore).lines
    torn = whole.splitlines(keepends=True)[5][:40]
    history_path(keystore).write_bytes(whole + torn)
    append(keystore, "unlock", {}, KEY)
    found = check(keystore, anchor)
    assert found.findings == []
    assert found.notes == ["line 7 is not a record; a crash may have torn it"]
    assert found.records[-1]["n"] == 8


def test_change_that_was_stopped_is_told_from_one_that_was_made(keystore: Path, anchor: HistoryAnchor) -> None:
    append(keystore, "key rotate", {"revision": 4}, KEY)
    (note,) = check(keystore, anchor).notes
    assert note.startswith("the change of record 7 was stopped")
    append(keystore, "key rotate", {"revision": 4}, KEY)
    assert check(keystore, anchor, revision=4).notes == [
        "the change of record 7 was stopped before it took effect"
    ]


@pytest.mark.parametrize("junk", [b"\n", b"{}\n", b'{"n":1,"mac":null}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_junk_in_the_history_is_no_record_and_harms_nothing(
    keystore: Path, anchor: HistoryAnchor, junk: bytes
) -> None:
    with history_path(keystore).open("ab") as file:
        file.write(junk)
    append(keystore, "unlock", {}, KEY)
    found = check(keystore, anchor)
    assert found.findings == []
    assert len(found.records) == 7
    json.dumps(found.records)


def test_two_writers_at_a_time_keep_the_chain(keystore: Path) -> None:
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(25):
                append(keystore, "unlock", {}, KEY)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    found = check(keystore, EMPTY)
    assert found.findings == []
    assert [record["n"] for record in found.records] == list(range(1, 101))


def test_record_that_a_full_disk_took_in_part_is_an_error_and_leaves_nothing(
    keystore: Path, anchor: HistoryAnchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_history(keystore)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
    with pytest.raises(OSError, match="No space left"):
        append(keystore, "key rotate", {"key": "dk_1", "revision": 4}, KEY)
    monkeypatch.undo()
    assert read_history(keystore) == before
    append(keystore, "key rotate", {"key": "dk_1", "revision": 4}, KEY)
    found = check(keystore, anchor, revision=4)
    assert (found.findings, found.notes) == ([], [])


def start_anew(keystore: Path) -> None:
    for path in (history_path(keystore), head_path(keystore)):
        path.unlink()


def cut(keystore: Path, lines: int) -> None:
    """Leaves the first lines of the history alone."""
    kept = read_history(keystore).lines.splitlines(keepends=True)[:lines]
    history_path(keystore).write_bytes(b"".join(kept))


def test_unlock_removed_from_the_end_shows_whatever_is_unlocked_afterwards(
    keystore: Path, anchor: HistoryAnchor
) -> None:
    cut(keystore, 5)
    assert check(keystore, anchor).findings == ["there are 5 records, and there were 6"]
    append(keystore, "unlock", {"command": "key history"}, KEY)
    assert check(keystore, anchor).findings == ["line 6 is not the one that was there"]
    append(keystore, "unlock", {"command": "key history"}, KEY)
    assert check(keystore, anchor).findings == ["line 6 is not the one that was there"]

    append(keystore, "key rotate", {"lacking": "line 6"}, KEY, new_head=True)
    assert check(keystore, anchor).findings == []
    append(keystore, "unlock", {}, KEY)
    cut(keystore, 8)
    assert check(keystore, anchor).findings == ["there are 8 records, and there were 9"]


def test_head_that_is_gone_or_from_elsewhere_shows(keystore: Path, anchor: HistoryAnchor, tmp_path: Path) -> None:
    other = private_copy(GOLDEN, tmp_path / "other")
    append(other, "unlock", {}, OTHER_KEY)
    head = head_path(keystore)
    for change, finding in (
        (head.unlink, "the file that counts the records is missing"),
        (lambda: head.write_bytes(head_path(other).read_bytes()), "is not as it was written"),
        (lambda: head.write_bytes(b"x" * 5000), "is not as it was written"),
    ):
        change()
        append(keystore, "unlock", {}, KEY)
        (found,) = check(keystore, anchor).findings
        assert finding in found


def test_head_left_behind_by_a_crash_is_no_finding(keystore: Path, anchor: HistoryAnchor) -> None:
    head = head_path(keystore).read_bytes()
    append(keystore, "unlock", {}, KEY)
    head_path(keystore).write_bytes(head)
    assert check(keystore, anchor).findings == []
    append(keystore, "unlock", {}, KEY)
    assert check(keystore, anchor).findings == []
    assert head_path(keystore).read_bytes() > head

    start_anew(keystore)
    append(keystore, "unlock failed", {}, None)
    append(keystore, "unlock", {}, KEY)
    head_path(keystore).unlink()
    assert check(keystore, EMPTY).findings == []
    append(keystore, "unlock", {}, KEY)
    cut(keystore, 2)
    assert check(keystore, EMPTY).findings


def test_head_is_its_owners_alone_and_no_link_is_followed(keystore: Path, anchor: HistoryAnchor) -> None:
    head = head_path(keystore)
    assert stat.S_IMODE(head.stat().st_mode) == 0o600
    head.rename(head.with_name("elsewhere"))
    head.symlink_to(head.with_name("elsewhere"))
    with pytest.raises(UntrustedError, match="symbolic link"):
        append(keystore, "unlock", {}, KEY)


def test_record_is_written_though_the_head_cannot_be_read(keystore: Path, anchor: HistoryAnchor) -> None:
    head_path(keystore).unlink()
    head_path(keystore).mkdir()
    with pytest.raises((OSError, UntrustedError)):
        append(keystore, "unlock", {"command": "late"}, KEY)
    head_path(keystore).rmdir()
    assert check(keystore, anchor).records[-1]["what"] == {"command": "late"}


def test_failures_that_nobody_has_unlocked_since_are_all_covered_by_the_next_mac(
    keystore: Path, anchor: HistoryAnchor
) -> None:
    for _ in range(20):
        append(keystore, "unlock failed", {}, None)
    append(keystore, "unlock", {}, KEY)
    found = check(keystore, anchor)
    assert (found.findings, found.notes) == ([], [])
    assert [record["n"] for record in found.records] == list(range(1, 28))
    lines = read_history(keystore).lines.splitlines(keepends=True)
    history_path(keystore).write_bytes(b"".join(without(10)(lines)))
    assert check(keystore, anchor).findings

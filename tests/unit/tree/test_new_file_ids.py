"""What is encrypted in a file that was empty is under a key of its own: no key is used for two contents.

Covers Opener._begin() of tdefs/tree/opening.py, and what tdefs/format/suite1/content.py asks of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EIO, ENOSPC
from pathlib import Path

import pytest

from tdefs.data.calls import Owner
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, Header, decode_header
from tdefs.format.layout import HEADER_SIZE
from tdefs.keys.hierarchy import KeyRing
from tdefs.policy.parse import load_policy
from tests.support.served_volume import DK_1, DK_2, VOLUME_ID, Crash, ServedVolume, read_all, relation

CONF = "postgresql.conf"
TABLE = "base/16384/16385"
TEMPORARY = "base/16384/t3_16386"
OLD, NEW = b"old content " * 1000, b"new content " * 900


def header(served: ServedVolume, path: str) -> Header:
    return decode_header(served.stored(path)[:RECORD_SIZE], VOLUME_ID)


def truncate(served: ServedVolume, path: str, length: int) -> None:
    inode = served.inode(path)
    try:
        served.opener.open(inode, writable=True).truncate(length)
    finally:
        served.opener.close_if_unused(inode)


def emptied(served: ServedVolume) -> None:
    truncate(served, CONF, 0)


def emptied_in_an_earlier_session(served: ServedVolume) -> None:
    truncate(served, CONF, 0)
    served.remount()


def emptied_and_made_longer(served: ServedVolume) -> None:
    truncate(served, CONF, 0)
    truncate(served, CONF, 100_000)


def emptied_twice(served: ServedVolume) -> None:
    truncate(served, CONF, 0)
    served.write(CONF, 0, NEW)
    truncate(served, CONF, 0)


EMPTIED = pytest.mark.parametrize(
    "empty", [emptied, emptied_in_an_earlier_session, emptied_and_made_longer, emptied_twice]
)


@EMPTIED
def test_what_is_written_after_a_file_was_emptied_is_under_another_key(
    served: ServedVolume, empty: Callable[[ServedVolume], None]
) -> None:
    served.create(CONF, OLD)
    before = served.stored(CONF)
    empty(served)
    between = header(served, CONF).file_id
    served.write(CONF, 0, OLD)
    after = header(served, CONF).file_id
    assert after != before[32:48]
    assert (after == between) == (empty is emptied_and_made_longer)
    pages = [stored[HEADER_SIZE : HEADER_SIZE + len(OLD)] for stored in (before, served.stored(CONF))]
    assert not {pages[0][at : at + 16] for at in range(0, len(OLD), 16)} & {
        pages[1][at : at + 16] for at in range(0, len(OLD), 16)
    }
    served.remount()
    assert served.read(CONF)[: len(OLD)] == OLD


def test_a_file_made_and_filled_gets_one_header(served: ServedVolume) -> None:
    owner = Owner(os.geteuid(), os.getegid())
    inode, _ = served.namespace.create(*served.place(CONF), 0o600, owner)
    inode.looked_up()  # as long as the kernel knows it
    served.opener.close_if_unused(inode)
    made = header(served, CONF)
    served.calls.made.clear()
    for _ in range(3):
        served.opener.close_idle(inode)
        served.write(CONF, 0, OLD)
    assert not [label for label in served.calls.made if label.startswith("begin:")]
    assert header(served, CONF) == made


def test_opening_an_empty_file_again_and_again_writes_nothing(served: ServedVolume) -> None:
    """PostgreSQL opens empty relations for reading and writing, for each connection."""
    served.create(TABLE)
    served.remount()
    before = served.stored(TABLE)
    served.calls.made.clear()
    for _ in range(3):
        inode = served.inode(TABLE)
        served.opener.open(inode, writable=True)
        served.opener.close_if_unused(inode)
        served.opener.close_idle(inode)
    assert not {"begin:header", "begin:sync", "begin:truncated"} & set(served.calls.made)
    assert served.stored(TABLE) == before


def test_all_who_have_the_file_open_use_the_new_key(served: ServedVolume) -> None:
    served.create(TABLE, OLD)
    inode = served.inode(TABLE)
    reader = served.opener.open(inode, writable=False)
    writer = served.opener.open(inode, writable=True)
    inode.opened()
    inode.opened()
    before = writer.lock.changes
    writer.truncate(0)
    writer.write(0, NEW)
    assert read_all(reader) == NEW
    assert reader.lock.changes > before, "who read ciphertext aside would decrypt it with another key"


def test_the_new_id_is_under_the_data_key_of_todays_policy(served: ServedVolume, tmp_path: Path) -> None:
    served.create(TABLE, OLD)
    truncate(served, TABLE, 0)
    (tmp_path / "policy.yaml").write_text("version: 1\ndefault: dk_2\n")
    served.remount(policy=load_policy(tmp_path / "policy.yaml"))
    assert header(served, TABLE).key_name == "dk_1"
    served.write(TABLE, 0, NEW)
    assert header(served, TABLE).key_name == "dk_2"
    served.remount()
    assert served.read(TABLE) == NEW


def test_a_policy_that_leaves_the_file_plain_leaves_an_encrypted_one_encrypted(
    served: ServedVolume, tmp_path: Path
) -> None:
    served.create(CONF, OLD)
    truncate(served, CONF, 0)
    (tmp_path / "policy.yaml").write_text("version: 1\nkinds: {configuration: plain}\n")
    served.remount(policy=load_policy(tmp_path / "policy.yaml"))
    before = header(served, CONF)
    served.write(CONF, 0, NEW)
    assert header(served, CONF).file_id != before.file_id
    assert NEW[:100] not in served.stored(CONF)
    assert served.read(CONF) == NEW


def test_a_revoked_data_key_leaves_an_empty_file_its_own_key_and_a_new_id(served: ServedVolume) -> None:
    """The file is not new: whoever may open it may go on to write to it, as before."""
    served.create(TABLE, OLD)
    truncate(served, TABLE, 0)
    before = header(served, TABLE)
    served.remount(ring=KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_2], revoked=[("dk_1", 1)]))
    served.write(TABLE, 0, NEW)
    after = header(served, TABLE)
    assert (after.key_name, after.key_round) == (before.key_name, before.key_round)
    assert after.file_id != before.file_id
    assert served.read(TABLE) == NEW


def test_the_new_id_is_bound_as_the_old_one_was(served: ServedVolume) -> None:
    served.create(TABLE, OLD)
    served.create("base/16384/16390", OLD)
    served.link("base/16384/16390", "base/16384/16391")
    for path in (TABLE, "base/16384/16390"):
        truncate(served, path, 0)
        served.write(path, 0, NEW)
    assert served.bound(TABLE) == (relation(16385),)
    assert served.bound("base/16384/16391") == (ANY_PLACE,)
    served.remount()
    assert served.read("base/16384/16390") == served.read("base/16384/16391") == NEW


def test_a_file_in_anothers_place_gets_no_new_id(served: ServedVolume) -> None:
    served.create(TABLE)
    (served.data / TABLE).rename(served.data / "base/16384/16399")
    served.remount()
    with pytest.raises(OSError, match="Input/output"):
        served.write("base/16384/16399", 0, NEW)
    assert header(served, "base/16384/16399").identities == (relation(16385),)


def test_a_file_without_a_name_goes_on_under_a_new_key(served: ServedVolume) -> None:
    served.create(CONF, OLD)
    inode = served.inode(CONF)
    inode.looked_up()
    file = served.opener.open(inode, writable=True)
    inode.opened()
    served.unlink(CONF)
    served.calls.made.clear()
    file.truncate(0)
    file.write(0, NEW)
    assert "begin:header" in served.calls.made
    assert "begin:sync" not in served.calls.made
    assert read_all(file) == NEW


# --- when it stops halfway


def test_the_truncation_is_durable_before_the_header_and_the_header_before_the_content(
    served: ServedVolume,
) -> None:
    """Otherwise a power cut could leave the old content, or the new one, under the other's header."""
    served.create(CONF, OLD)
    served.calls.made.clear()
    truncate(served, CONF, 0)
    served.write(CONF, 0, NEW)
    made = served.calls.made
    order = [made.index(label) for label in ("file:truncate", "begin:truncated", "begin:header", "begin:sync")]
    assert order == sorted(order)
    assert made.index("begin:sync") < made.index("file:write")


def test_a_temporary_relation_is_not_waited_for(served: ServedVolume) -> None:
    """ON COMMIT DELETE ROWS empties them with each commit, and no server finds them after it has started."""
    served.create(TEMPORARY, OLD)
    before = header(served, TEMPORARY)
    truncate(served, TEMPORARY, 0)
    served.calls.made.clear()
    served.write(TEMPORARY, 0, NEW)
    assert header(served, TEMPORARY).file_id != before.file_id
    assert not {"begin:truncated", "begin:sync"} & set(served.calls.made)


def test_a_crash_before_any_system_call_leaves_the_old_content_none_or_the_new(tmp_path: Path) -> None:
    crashes = 0
    found = set()
    while True:
        (tmp_path / str(crashes)).mkdir()
        served = ServedVolume(tmp_path / str(crashes))
        served.create(CONF, OLD)
        served.calls.crash_before = len(served.calls.made) + crashes
        ended = True
        try:
            truncate(served, CONF, 0)
            served.write(CONF, 0, NEW)
        except Crash:
            ended = False
        served.remount(after_crash=True)
        content = served.read(CONF)
        # a length that is no multiple of 16 is set before its content is there
        assert content in (OLD, b"", bytes(len(NEW)), NEW), crashes
        found.add(content)
        served.close()
        if ended:
            break
        crashes += 1
    assert {OLD, b"", NEW} <= found


@pytest.mark.parametrize("label", ["begin:truncated", "begin:header", "begin:sync", "file:write"])
@pytest.mark.parametrize("errno", [EIO, ENOSPC])
def test_what_fails_leaves_an_empty_file_that_can_be_filled_later(
    served: ServedVolume, label: str, errno: int
) -> None:
    served.create(CONF, OLD)
    truncate(served, CONF, 0)
    used = {header(served, CONF).file_id}
    served.calls.fail[label] = errno
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno)):
            served.write(CONF, 0, OLD)
    assert served.read(CONF) == b""
    served.calls.fail.clear()
    served.write(CONF, 0, NEW)
    assert header(served, CONF).file_id not in used
    for _ in range(2):
        assert served.read(CONF) == NEW
        served.remount()

"""Creating, opening and writing without a kernel: what is in the way is an errno, and nothing is half made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EACCES, EEXIST, EIO, ENOENT, ENOSPC, EPERM
from pathlib import Path

import pytest

from tdefs.data.forms import Encrypted
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, FileClass, of_class
from tdefs.format.layout import HEADER_SIZE, PAGE_SIZE
from tdefs.format.suite1.layout import stored_size
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending, LastSession
from tests.support.errnos import errno_of
from tests.support.served_volume import RING, VOLUME_ID, ServedVolume, relation

TABLE = "base/16384/16385"
WAL = "pg_wal/000000010000000000000001"
SECRET = b"number of the credit card: 4000 0000 0000 0002\n"


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[ServedVolume]:
    """A volume whose policy leaves configuration in the clear and has a data key for one relation."""
    (tmp_path / "policy.yaml").write_text(
        "version: 1\n"
        "relations:\n"
        "  - {database: 16384, relfilenodes: [16390], key: dk_2}\n"
        "  - {database: 16384, relfilenodes: [16391], key: plain}\n"
        "kinds: {configuration: plain}\n"
    )
    volume = ServedVolume(make(tmp_path / "backing/data"), load_policy(tmp_path / "policy.yaml"))
    volume.mkdirs("base/16384", "pg_wal")
    yield volume
    volume.close()


def make(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


# --- creating and opening


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 8191, 8192, 8193, 20000])
def test_what_was_written_is_read_after_a_remount(served: ServedVolume, length: int) -> None:
    content = (SECRET * 500)[:length]
    served.create(TABLE, content)
    served.remount()
    assert served.length(TABLE) == length
    assert served.read(TABLE) == content
    assert served.length(TABLE) == length
    assert len(served.stored(TABLE)) == stored_size(length)
    assert length < 16 or content[:16] not in served.stored(TABLE)


def test_identical_files_have_different_ciphertexts(served: ServedVolume) -> None:
    page = (SECRET * 200)[:PAGE_SIZE]
    served.create(TABLE, page)
    served.create("base/16384/16386", page)
    assert served.stored(TABLE)[HEADER_SIZE:] != served.stored("base/16384/16386")[HEADER_SIZE:]


def test_all_users_of_a_file_share_one_descriptor_and_one_length(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    inode = served.inode(TABLE)
    one, two = (served.opener.open(inode, writable=writable) for writable in (False, True))
    one.write(len(SECRET), SECRET)
    assert one is two
    assert served.opener.length(inode, (served.data / TABLE).stat()) == 2 * len(SECRET)


def test_an_existing_file_is_not_created_again(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    assert errno_of(lambda: served.create(TABLE)) == EEXIST
    assert served.read(TABLE) == SECRET


def test_the_private_directory_is_neither_seen_nor_made(served: ServedVolume) -> None:
    served.mkdirs(".tdefs")
    assert errno_of(lambda: served.inode(".tdefs")) == ENOENT
    assert b".tdefs" not in served.namespace.names_in(served.inodes.root)
    assert errno_of(lambda: served.create(".tdefs")) == EPERM
    assert errno_of(lambda: served.rename("base", ".tdefs")) == EPERM
    served.create("base/.tdefs", SECRET)
    assert served.read("base/.tdefs") == SECRET


def test_the_policy_chooses_at_creation_and_never_afterwards(mixed: ServedVolume) -> None:
    mixed.create("postgresql.conf", b"port = 5432\n")
    mixed.create(TABLE, SECRET)
    mixed.create("base/16384/16390", SECRET)
    mixed.create("base/16384/16391", SECRET)
    assert mixed.stored("postgresql.conf") == b"port = 5432\n"
    assert mixed.stored("base/16384/16391") == SECRET
    forms = [mixed.files.headers.form(mixed.inode(path)) for path in (TABLE, "base/16384/16390")]
    assert [form.header.key_name for form in forms if isinstance(form, Encrypted)] == ["dk_1", "dk_2"]
    mixed.remount(policy=Policy.everything())
    assert mixed.read("base/16384/16391") == mixed.read("base/16384/16390") == mixed.read(TABLE) == SECRET


# --- what is wrong with a file


def test_an_exchanged_pair_of_relation_files_is_refused_and_named_in_the_log(
    served: ServedVolume, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [TABLE, "base/16384/16386", "base/16384/16387"]
    for path in paths:
        served.create(path, SECRET)
    one, two = (served.data / path for path in paths[:2])
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)
    served.remount()
    for path in paths[:2]:
        assert errno_of(lambda path=path: served.read(path)) == EIO  # type: ignore[misc]
        assert f"{path}: the header belongs to relation file" in caplog.text
    assert served.read(paths[2]) == SECRET


@pytest.mark.parametrize("other", ["base/16400/16385", "base/16384/16385_fsm", "base/16384/16385.1", WAL])
def test_a_relation_file_is_refused_in_every_other_place(served: ServedVolume, other: str) -> None:
    served.create(TABLE, SECRET)
    (served.data / TABLE).rename(served.data / other)
    served.remount()
    assert errno_of(lambda: served.read(other)) == EIO


def test_a_foreign_file_is_refused(served: ServedVolume) -> None:
    (served.data / TABLE).write_bytes(SECRET)
    assert errno_of(lambda: served.read(TABLE)) == EIO


def test_a_file_of_another_key_is_refused_and_others_are_served(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    served.remount(ring=KeyRing(VOLUME_ID, "dk_1", [DataKey("dk_1", 1, AES_256_XTS, bytes(32))]))
    assert errno_of(lambda: served.read(TABLE)) == EIO
    served.create(WAL, SECRET)
    assert served.read(WAL) == SECRET


def test_a_damaged_file_can_be_seen_and_removed(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    with (served.data / TABLE).open("r+b") as file:
        file.write(b"\0")
    served.remount()
    assert errno_of(lambda: served.read(TABLE)) == EIO
    assert served.length(TABLE) == len(SECRET)
    served.unlink(TABLE)
    assert not (served.data / TABLE).exists()


@pytest.mark.parametrize("size", [8, 255, 256, 8191])
def test_a_truncated_header_is_refused(served: ServedVolume, size: int) -> None:
    served.create(TABLE, SECRET)
    os.truncate(served.data / TABLE, size)
    served.remount()
    assert errno_of(lambda: served.read(TABLE)) == EIO


@pytest.mark.parametrize("size", [4, 7])
def test_a_header_cut_to_a_part_of_its_magic_is_refused_in_a_volume_with_plain_files(
    mixed: ServedVolume, size: int
) -> None:
    mixed.create(TABLE, SECRET)
    os.truncate(mixed.data / TABLE, size)
    mixed.remount()
    assert errno_of(lambda: mixed.read(TABLE)) == EIO


def test_a_wiped_header_is_refused(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    with (served.data / TABLE).open("r+b") as file:
        file.write(bytes(RECORD_SIZE))
    served.remount()
    assert errno_of(lambda: served.read(TABLE)) == EIO


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_file_whose_header_a_crash_swallowed_is_empty_in_every_later_session(
    served: ServedVolume, caplog: pytest.LogCaptureFixture, sessions: int
) -> None:
    served.create(WAL, SECRET)
    with (served.data / TABLE).open("wb") as file:
        file.truncate(3 * PAGE_SIZE)
    volume = Volume(served.data.parent, VOLUME_ID, served.data / "keystore")
    crashed = Believed(last=LastSession(Ending.UNCLEAN))
    assert empty_unfinished_files(volume, crashed) == [TABLE]
    assert f"{TABLE}: emptied: its header was lost" in caplog.text
    for _ in range(sessions):
        served.remount()
    assert served.read(TABLE) == b""
    served.write(TABLE, 0, SECRET)
    served.remount()
    assert served.read(TABLE) == served.read(WAL) == SECRET
    assert served.bound(TABLE) == (relation(16385),)


@pytest.mark.parametrize("ending", [Ending.CLEAN, Ending.UNPROVEN])
def test_unless_a_crash_is_proven_a_wiped_header_is_not_emptied(served: ServedVolume, ending: Ending) -> None:
    with (served.data / TABLE).open("wb") as file:
        file.truncate(3 * PAGE_SIZE)
    volume = Volume(served.data.parent, VOLUME_ID, served.data / "keystore")
    assert empty_unfinished_files(volume, Believed(last=LastSession(ending))) == []
    assert errno_of(lambda: served.read(TABLE)) == EIO


def test_an_empty_backing_file_is_encrypted_before_its_first_byte(served: ServedVolume) -> None:
    (served.data / TABLE).touch()
    served.write(TABLE, 0, SECRET)
    assert served.stored(TABLE)[:6] == b"\x89TDEFS"
    assert SECRET not in served.stored(TABLE)


def test_an_empty_file_opened_for_reading_is_encrypted_when_it_becomes_writable(served: ServedVolume) -> None:
    (served.data / TABLE).touch()
    served.calls.fail["open:rw"] = EACCES
    inode = served.inode(TABLE)
    served.opener.open(inode, writable=False)
    served.calls.fail.clear()
    served.opener.open(inode, writable=True).write(0, SECRET)
    assert SECRET not in served.stored(TABLE)


@pytest.mark.parametrize("label", ["create:size", "create:header"])
def test_an_empty_file_whose_header_cannot_be_written_is_not_written_in_clear_later(
    served: ServedVolume, label: str
) -> None:
    (served.data / TABLE).touch()
    served.calls.fail[label] = ENOSPC
    inode = served.inode(TABLE)
    inode.looked_up()
    assert errno_of(lambda: served.opener.open(inode, writable=True)) == ENOSPC
    served.calls.fail.clear()
    served.write(TABLE, 0, SECRET)
    assert SECRET not in served.stored(TABLE)


# --- a disk that is full, and other errors on the way


@pytest.mark.parametrize("label", ["create:open", "create:stat", "create:size", "create:header"])
def test_a_create_that_fails_leaves_nothing_behind(served: ServedVolume, label: str) -> None:
    served.calls.fail[label] = ENOSPC
    descriptors = len(os.listdir("/proc/self/fd"))
    assert errno_of(lambda: served.create("pg_wal/new", SECRET)) == ENOSPC
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # that of the directory is kept
    assert os.listdir(served.data / "pg_wal") == []
    served.calls.fail.clear()
    served.create("pg_wal/new", SECRET)
    assert served.read("pg_wal/new") == SECRET


def test_a_create_that_fails_leaves_no_inode_that_the_next_file_inherits(served: ServedVolume) -> None:
    known = len(served.inodes)
    served.calls.fail["create:header"] = ENOSPC
    assert errno_of(lambda: served.create(TABLE, SECRET)) == ENOSPC
    assert len(served.inodes) <= known + 2  # the two directories


def test_a_file_created_after_a_failed_one_can_be_opened_again(served: ServedVolume) -> None:
    for attempt in range(20):  # the file system below gives a free inode number again at once, or nearly
        served.calls.fail["create:header"] = ENOSPC
        assert errno_of(lambda: served.create(TABLE, SECRET)) == ENOSPC
        served.calls.fail.clear()
        path = f"base/16384/{17000 + attempt}"
        served.create(path, SECRET)
        assert served.read(path) == SECRET


@pytest.mark.parametrize("label", ["file:write", "file:truncate"])
@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("offset", [0, 20, 8192, 8199, 30000])
def test_a_write_that_fails_keeps_content_and_length(
    served: ServedVolume, label: str, spare: int, offset: int
) -> None:
    if (label, spare, offset) == ("file:truncate", 1, 30000):
        pytest.skip("the disk that lengthened the file refuses to shorten it again")
    content = (SECRET * 200)[:8199]
    served.create(WAL, content)
    served.calls.fail[label] = ENOSPC
    served.calls.spare = spare
    try:
        served.write(WAL, offset, b"new" * 7)
    except OSError as error:
        assert error.errno == ENOSPC
    else:
        content = content[:offset].ljust(offset, b"\0") + b"new" * 7 + content[offset + 21 :]
    served.calls.fail.clear()
    for _ in range(2):
        assert served.length(WAL) == len(content)
        assert served.read(WAL) == content
        served.remount()


@pytest.mark.parametrize("size", [50000, 50000 - 50000 % 16 + 16 - 8199 % 16])
def test_a_full_disk_in_the_middle_of_an_appending_write_keeps_what_was_there(
    served: ServedVolume, size: int
) -> None:
    content = (SECRET * 200)[:8199]
    served.create(WAL, content)
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        if len(data) > PAGE_SIZE:
            return real(fd, bytes(data)[: len(data) // 2 // 4096 * 4096], offset)
        if offset > HEADER_SIZE + PAGE_SIZE:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        return real(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        assert errno_of(lambda: served.write(WAL, len(content), b"n" * size)) == ENOSPC
    assert served.read(WAL) == content
    served.remount()
    assert served.read(WAL) == content


# --- hard links


def test_a_hard_link_under_another_identity_gives_the_identity_up(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    served.link(TABLE, "base/16400/20000")
    assert served.bound(TABLE) == (ANY_PLACE,)
    served.remount()
    assert served.read(TABLE) == served.read("base/16400/20000") == SECRET
    served.unlink(TABLE)
    served.write("base/16400/20000", 0, b"N")
    assert served.read("base/16400/20000") == b"N" + SECRET[1:]


def test_a_hard_link_under_the_same_identity_keeps_it(served: ServedVolume) -> None:
    served.create(WAL, SECRET)
    served.link(WAL, "pg_wal/000000010000000000000002")
    assert served.bound(WAL) == (of_class(FileClass.WAL),)
    served.remount()
    assert served.read("pg_wal/000000010000000000000002") == SECRET


def test_the_identity_is_given_up_durably_before_the_link_is_made(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    served.calls.made.clear()
    served.link(TABLE, "base/16384/16386")
    assert served.calls.made.index("bind:sync") < served.calls.made.index("link")


def test_a_plain_file_is_not_linked_to_where_the_policy_encrypts(mixed: ServedVolume) -> None:
    mixed.create("postgresql.conf", b"port = 5432\n")
    with pytest.raises(OSError, match="cross-device"):
        mixed.link("postgresql.conf", TABLE)
    assert not (mixed.data / TABLE).exists()


def test_the_ring_is_that_of_the_volume(served: ServedVolume) -> None:
    served.create(TABLE, SECRET)
    assert served.stored(TABLE)[16:32] == RING.volume_id

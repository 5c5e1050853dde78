"""A rename brings the identity along; whenever it stops, each file can be opened wherever it lies then."""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EIO, ENOENT, EXDEV
from pathlib import Path

import pytest

from tdefs.format.header import FileClass, Identity, named, of_class
from tdefs.policy.parse import load_policy
from tdefs.tree.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.support.errnos import errno_of
from tests.support.served_volume import Crash, ServedVolume, read_all, relation

ONE, TWO, THREE = "base/16384/16385", "base/16384/16386", "base/16400/16387_fsm.1"
WAL = "pg_wal/000000010000000000000001"


# --- what a rename does


@pytest.mark.parametrize(
    ("old", "new", "identity"),
    [
        (ONE, THREE, relation(16387, database=16400, fork=1, segment=1)),
        ("base/16384/.16385.Ab1Xyz", ONE, relation(16385)),
        (ONE, WAL, of_class(FileClass.WAL)),
        (WAL, "pg_wal/000000010000000000000002", of_class(FileClass.WAL)),
    ],
)
def test_a_rename_binds_the_file_to_its_new_place_alone(
    served: ServedVolume, old: str, new: str, identity: Identity
) -> None:
    served.create(old, b"rows")
    served.rename(old, new)
    assert served.bound(new) == (identity,)
    served.remount()
    assert served.read(new) == b"rows"
    assert errno_of(lambda: served.read(old)) == ENOENT
    (served.data / new).rename(served.data / TWO)
    served.remount()
    assert errno_of(lambda: served.read(TWO)) == EIO


def test_a_rename_of_a_wal_segment_writes_no_header(served: ServedVolume) -> None:
    served.create(WAL, b"records")
    served.calls.made.clear()
    served.rename(WAL, "pg_wal/000000010000000000000002")
    assert "bind:header" not in served.calls.made


def test_an_open_file_goes_on_being_written_after_its_rename(served: ServedVolume) -> None:
    served.create(ONE, b"rows")
    file = served.opener.open(served.inode(ONE), writable=True)
    served.inode(ONE).opened()
    served.rename(ONE, TWO)
    file.write(4, b" more")
    served.remount()
    assert served.read(TWO) == b"rows more"


def test_a_replaced_file_lives_on_while_it_is_open(served: ServedVolume) -> None:
    served.create(ONE, b"new")
    served.create(TWO, b"old")
    file = served.opener.open(served.inode(TWO), writable=True)
    served.inode(TWO).opened()
    served.rename(ONE, TWO)
    assert read_all(file) == b"old"
    assert served.read(TWO) == b"new"


def test_noreplace_refuses_and_changes_nothing(served: ServedVolume) -> None:
    served.create(ONE, b"one")
    served.create(TWO, b"two")
    assert errno_of(lambda: served.rename(ONE, TWO, RENAME_NOREPLACE)) == EEXIST
    assert served.bound(ONE) == (relation(16385),)
    assert served.read(TWO) == b"two"


def test_an_exchange_binds_both_files(served: ServedVolume) -> None:
    served.create(ONE, b"one")
    served.create(TWO, b"two")
    served.rename(ONE, TWO, RENAME_EXCHANGE)
    served.remount()
    assert (served.read(ONE), served.read(TWO)) == (b"two", b"one")
    assert (served.bound(ONE), served.bound(TWO)) == ((relation(16385),), (relation(16386),))


def test_a_directory_takes_the_identities_of_its_files_along(served: ServedVolume) -> None:
    for path in (ONE, TWO, "base/16384/PG_VERSION"):
        served.create(path, path.encode())
    served.rename("base/16384", "base/20000")
    served.remount()
    assert served.read("base/20000/16385") == ONE.encode()
    assert served.bound("base/20000/16386") == (relation(16386, database=20000),)
    assert served.bound("base/20000/PG_VERSION") == (named(b"base/20000/PG_VERSION"),)


def test_a_rename_does_not_launder_a_file_that_lies_in_anothers_place(served: ServedVolume) -> None:
    served.create(ONE, b"one")
    (served.data / ONE).rename(served.data / TWO)
    served.remount()
    served.rename(TWO, THREE)
    assert errno_of(lambda: served.read(THREE)) == EIO


def test_a_plain_file_is_not_renamed_to_where_the_policy_encrypts(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\nkinds: {configuration: plain}\n")
    (tmp_path / "backing/base/16384").mkdir(parents=True)
    served = ServedVolume(tmp_path / "backing", load_policy(tmp_path / "policy.yaml"))
    served.create("a.conf", b"plain")
    served.create("base/16384/16385", b"rows")
    assert errno_of(lambda: served.rename("a.conf", "base/16384/16386")) == EXDEV
    assert errno_of(lambda: served.rename("a.conf", "base/16384/16385")) == EXDEV
    assert errno_of(lambda: served.rename("base/16384/16385", "a.conf", RENAME_EXCHANGE)) == EXDEV
    served.rename("a.conf", "b.conf")
    served.remount()
    assert served.read("base/16384/16385") == b"rows"
    assert served.read("b.conf") == b"plain"
    served.close()


@pytest.mark.parametrize("label", ["bind:header", "bind:sync", "rename"])
def test_a_rename_that_fails_leaves_every_file_where_it_was(served: ServedVolume, label: str) -> None:
    served.create(ONE, b"one")
    served.create(TWO, b"two")
    served.calls.fail[label] = EIO
    assert errno_of(lambda: served.rename(ONE, TWO, RENAME_EXCHANGE)) == EIO
    for _ in range(2):
        served.calls.fail.clear()
        assert (served.read(ONE), served.read(TWO)) == (b"one", b"two")
        served.remount()


# --- when it stops halfway


def rename_file(served: ServedVolume) -> None:
    served.rename(ONE, THREE)


def replace_file(served: ServedVolume) -> None:
    served.rename(ONE, TWO)


def exchange_files(served: ServedVolume) -> None:
    served.rename(ONE, TWO, RENAME_EXCHANGE)


def rename_directory(served: ServedVolume) -> None:
    served.rename("base/16384", "base/20000")


def exchange_directories(served: ServedVolume) -> None:
    served.rename("base/16384", "base/16400", RENAME_EXCHANGE)


@pytest.mark.parametrize(
    "action", [rename_file, replace_file, exchange_files, rename_directory, exchange_directories]
)
def test_a_crash_before_any_system_call_of_a_rename_leaves_every_file_readable(
    tmp_path: Path, action: Callable[[ServedVolume], None]
) -> None:
    crashes = 0
    while True:
        (tmp_path / str(crashes)).mkdir()
        served = ServedVolume(tmp_path / str(crashes))
        served.mkdirs("base/16384", "base/16400")
        served.create(ONE, b"one")
        served.create(TWO, b"two")
        served.create("base/16400/30000", b"three")
        served.calls.crash_before = len(served.calls.made) + crashes
        try:
            action(served)
        except Crash:
            pass
        else:
            served.close()
            break
        served.remount(after_crash=True)
        contents = []
        for path in sorted((served.data / "base").rglob("*")):
            if path.is_file():
                contents.append(served.read(str(path.relative_to(served.data))))
                assert len(served.bound(str(path.relative_to(served.data)))) == 1, "the rename was not ended"
        assert sorted(contents) in ([b"one", b"three", b"two"], [b"one", b"three"])
        served.close()
        crashes += 1
    assert crashes > 10


def test_a_header_keeps_the_old_identity_until_the_new_name_is_durable(served: ServedVolume) -> None:
    """Seen on ext4: fdatasync(2) of the file writes its header and not the rename, which a power cut undoes."""
    served.create(ONE, b"rows")
    served.calls.made.clear()
    served.rename(ONE, TWO)
    made = served.calls.made[served.calls.made.index("rename") :]
    final_header = max(at for at, label in enumerate(made) if label in ("bind:header", "bind:settle"))
    directory_syncs = [at for at, label in enumerate(made) if "sync" in label and label != "bind:sync"]
    assert directory_syncs
    assert directory_syncs[0] < final_header

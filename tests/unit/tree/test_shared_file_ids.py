"""Two files of a mount that show one file id are refused, both: whoever may read one must not write to the other.

Covers tdefs/tree/file_ids.py and what tdefs/tree/opening.py makes of it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tracemalloc
from collections.abc import Callable
from errno import EIO

import pytest

from tdefs.format.layout import HEADER_SIZE
from tdefs.tree.file_ids import FileIds
from tdefs.tree.inode import Backing
from tests.support.served_volume import ServedVolume, read_all

ONE, TWO, THREE = "log/one.log", "log/two.log", "log/three.log"
TABLE = "base/16384/16385"
CONTENT = b"a line of a log\n" * 1000


@pytest.fixture(autouse=True)
def _logs(served: ServedVolume) -> None:
    served.mkdirs("log")
    served.create(ONE, CONTENT)
    served.create(THREE, CONTENT)


def copy(served: ServedVolume, old: str, new: str) -> None:
    """A copy that was made in the backing directory."""
    shutil.copyfile(served.data / old, served.data / new)


def is_refused(served: ServedVolume, path: str, *, writable: bool = False) -> bool:
    inode = served.inode(path)
    try:
        served.opener.open(inode, writable=writable)
    except OSError as error:
        assert error.errno == EIO
        return True
    served.opener.close_if_unused(inode)
    return False


def forgotten(served: ServedVolume) -> None:
    """The kernel forgets everything that it knows of files."""
    served.opener.close_all_idle()
    for inode in served.inodes:
        if inode.is_file:
            served.inodes.forget(inode.number, inode.lookups)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("first", [ONE, TWO])
@pytest.mark.parametrize("forget", [False, True], ids=["known", "forgotten"])
def test_both_are_refused_and_the_log_names_both(
    served: ServedVolume, first: str, writable: bool, forget: bool, caplog: pytest.LogCaptureFixture
) -> None:
    copy(served, ONE, TWO)
    served.remount()
    second = TWO if first == ONE else ONE
    # nobody can know better as long as one of them was never seen
    assert not is_refused(served, first)
    if forget:
        forgotten(served)
    with caplog.at_level(logging.ERROR):
        assert is_refused(served, second, writable=writable)
    assert f'{second}: its file id is also that of "{first}"' in caplog.text
    assert is_refused(served, first, writable=writable)
    assert f'{first}: its file id is also that of "{second}"' in caplog.text
    assert not is_refused(served, THREE)


def test_looking_at_both_is_enough_to_refuse_both(served: ServedVolume) -> None:
    copy(served, ONE, TWO)
    served.remount()
    for path in (ONE, TWO):
        assert served.length(path) == len(CONTENT)
    assert is_refused(served, ONE)
    assert is_refused(served, TWO)


def test_a_copy_made_while_mounted_is_refused_and_who_has_the_original_open_goes_on(served: ServedVolume) -> None:
    file = served.opener.open(served.inode(ONE), writable=True)
    served.inode(ONE).opened()
    copy(served, ONE, TWO)
    assert is_refused(served, TWO)
    assert is_refused(served, ONE), "nobody else opens it"
    file.write(0, b"A")
    assert read_all(file) == b"A" + CONTENT[1:]


def unlink(served: ServedVolume) -> None:
    served.unlink(TWO)


def replace(served: ServedVolume) -> None:
    served.rename(THREE, TWO)


def replace_below(served: ServedVolume) -> None:
    (served.data / THREE).rename(served.data / TWO)
    served.opener.close_all_idle()


def remove_below(served: ServedVolume) -> None:
    (served.data / TWO).unlink()


def overwrite_below(served: ServedVolume) -> None:
    (served.data / TWO).write_bytes(b"")


@pytest.mark.parametrize("end", [unlink, replace, replace_below, remove_below, overwrite_below])
@pytest.mark.parametrize("forget", [False, True], ids=["known", "forgotten"])
def test_a_file_whose_copy_has_gone_is_served_again(
    served: ServedVolume, end: Callable[[ServedVolume], None], forget: bool
) -> None:
    copy(served, ONE, TWO)
    served.remount()
    assert not is_refused(served, TWO)
    assert is_refused(served, ONE)
    if forget:
        forgotten(served)
    end(served)
    assert not is_refused(served, ONE)
    assert served.read(ONE) == CONTENT


def test_the_original_may_go_and_its_copy_take_its_place(served: ServedVolume) -> None:
    """As a file is restored from a copy of the backing directory."""
    copy(served, ONE, TWO)
    served.unlink(ONE)
    assert served.read(TWO) == CONTENT
    copy(served, TWO, ONE)
    (served.data / TWO).unlink()
    assert served.read(ONE) == CONTENT


def test_an_inode_number_that_is_used_again_is_no_copy(served: ServedVolume) -> None:
    for number in range(50):
        served.create(TWO, b"%d" % number)
        assert served.read(TWO) == b"%d" % number
        served.unlink(TWO)


def test_an_inode_number_that_is_used_again_below_is_no_copy(served: ServedVolume) -> None:
    """The file system gives the number of a removed file to the next one, which may be its copy."""
    copy(served, ONE, THREE)
    (served.data / ONE).unlink()
    for _ in range(10):
        shutil.copyfile(served.data / THREE, served.data / TWO)
        (served.data / THREE).unlink()
        (served.data / TWO).rename(served.data / THREE)
        forgotten(served)
        assert served.read(THREE) == CONTENT


def test_names_of_one_file_are_no_copies(served: ServedVolume) -> None:
    served.link(ONE, TWO)
    for _ in range(2):
        assert served.read(ONE) == served.read(TWO) == CONTENT
        served.remount()
    served.unlink(ONE)
    assert served.read(TWO) == CONTENT
    copy(served, TWO, ONE)
    assert is_refused(served, ONE)
    assert is_refused(served, TWO)


def test_a_copy_that_lies_where_it_may_not_be_opened_takes_nothing_from_the_original(served: ServedVolume) -> None:
    """Otherwise a copy beside a relation, which harms nobody, would end the service."""
    served.create(TABLE, CONTENT)
    for place in ("base/16384/16386", "base/16384/16385.copy", "log/table"):
        copy(served, TABLE, place)
        assert is_refused(served, place)
    assert served.read(TABLE) == CONTENT


def test_a_copied_header_is_worth_nothing_once_something_was_written_under_it(served: ServedVolume) -> None:
    (served.data / TWO).write_bytes(served.stored(ONE)[:HEADER_SIZE])
    served.remount()
    served.write(TWO, 0, CONTENT)
    assert served.stored(TWO)[HEADER_SIZE:] != served.stored(ONE)[HEADER_SIZE:]
    assert served.read(ONE) == CONTENT
    assert not is_refused(served, TWO)


def test_a_copy_of_an_emptied_file_is_told_from_it_as_soon_as_one_was_filled(served: ServedVolume) -> None:
    inode = served.inode(ONE)
    served.opener.open(inode, writable=True).truncate(0)
    served.opener.close_if_unused(inode)
    copy(served, ONE, TWO)
    served.remount()
    assert not is_refused(served, ONE)
    served.write(ONE, 0, b"new")
    assert not is_refused(served, TWO)
    assert served.read(ONE) == b"new"


def test_a_mount_remembers_a_file_in_less_than_100_bytes() -> None:
    count = 100_000
    keys = [(os.urandom(16), Backing(64769, number)) for number in range(count)]
    ids = FileIds()
    tracemalloc.start()
    try:
        for file_id, key in keys:
            ids.add(file_id, key)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ids) == count
    assert used < 100 * count
    for file_id, key in keys[:: count // 100]:
        assert ids.backings(file_id) == [key]
    for file_id, key in keys:
        ids.remove(file_id, key)
    assert len(ids) == 0


def test_a_file_id_that_lies_across_two_others_is_not_taken_for_one() -> None:
    ids = FileIds()
    one, two = b"\0\1" + b"x" * 14, b"\0\1" + b"y" * 14
    ids.add(one, Backing(1, 2))
    ids.add(two, Backing(3, 4))
    bucket = next(iter(ids._buckets.values()))
    for at in range(1, len(bucket) - 16):
        if at % 32:
            assert ids.backings(bytes(bucket[at : at + 16])) == []
    ids.add(one, Backing(5, 6))
    ids.add(one, Backing(1, 2))
    assert ids.backings(one) == [(1, 2), (5, 6)]
    ids.remove(one, Backing(1, 2))
    assert ids.backings(one) == [(5, 6)]
    assert ids.backings(two) == [(3, 4)]

"""An open file knows whether the names above it are on the disk: the tree sets that, and nobody looks it up."""

from __future__ import annotations

import os

import pytest

from tdefs.data.calls import Owner
from tdefs.data.data_file import DataFile
from tests.support.served_volume import ServedVolume

TABLE, OTHER = "base/16384/16385", "base/16384/16386"
OWNER = Owner(os.geteuid(), os.getegid())


@pytest.fixture
def file(served: ServedVolume) -> DataFile:
    """An open file, everything above it durable."""
    served.create(TABLE, b"rows")
    served.create(OTHER, b"rows")
    inode = served.inode(TABLE)
    inode.looked_up()
    served.tree.unsynced_names.sync_above(inode)
    file = served.opener.open(inode, writable=True)
    inode.opened()
    file.sync_names()
    assert file.names_durable
    return file


def synced(served: ServedVolume, file: DataFile) -> int:
    """How many directories the names of a file needed to become durable."""
    served.calls.made.clear()
    file.sync_names()
    assert file.names_durable
    return served.calls.made.count("fsync:entry")


def test_a_new_file_is_not_durable_until_its_names_are_synced(served: ServedVolume, file: DataFile) -> None:
    _, made = served.namespace.create(*served.place("base/16384/1"), 0o600, OWNER)
    assert not made.names_durable
    assert synced(served, made) == 1


def test_names_that_come_beside_a_file_leave_it_as_it_is(served: ServedVolume, file: DataFile) -> None:
    served.create("base/16384/1")
    served.namespace.mkdir(*served.place("base/16384/d"), 0o700, OWNER)
    served.rename(OTHER, "base/16384/2")
    assert file.names_durable


def test_a_rename_of_a_file_is_made_durable_by_its_next_sync(served: ServedVolume, file: DataFile) -> None:
    served.rename(TABLE, "base/16400/16385")
    assert not file.names_durable
    file.sync_names()
    assert file.names_durable


def test_a_rename_of_a_directory_concerns_every_open_file_below_it(served: ServedVolume, file: DataFile) -> None:
    served.mkdirs("notes/deep/deeper")
    served.create("notes/deep/deeper/one", b"text")
    inode = served.inode("notes/deep/deeper/one")
    inode.looked_up()
    below = served.opener.open(inode, writable=True)
    inode.opened()
    below.sync_names()
    served.rename("notes/deep", "global/deep")
    assert (below.names_durable, file.names_durable) == (False, True)
    assert synced(served, below) == 1


def test_another_name_that_is_found_below_is_not_taken_for_durable(served: ServedVolume, file: DataFile) -> None:
    """Whoever made the hard link in the backing directory need not have synced it; asking costs nothing."""
    os.link(served.data / TABLE, served.data / "base/16384/16387")
    assert served.inode("base/16384/16387") is served.inode(TABLE)
    assert not file.names_durable
    assert synced(served, file) == 0


def test_a_directory_that_gets_the_number_of_a_removed_one_has_no_unsynced_names(served: ServedVolume) -> None:
    names = served.tree.unsynced_names
    served.namespace.mkdir(*served.place("gone"), 0o700, OWNER)
    gone = served.inode("gone")
    served.create("gone/file")
    served.unlink("gone/file")
    assert names.last_in(gone) is not None
    served.namespace.rmdir(*served.place("gone"))
    assert names.last_in(gone) is None


def test_a_link_in_a_directory_that_was_forgotten_and_moved_can_be_synced(served: ServedVolume) -> None:
    """The kernel knows the file by its other name, and asks for the directory anew when it is moved."""
    served.mkdirs("one", "other", "below")
    directory, _ = served.namespace.mkdir(*served.place("one/moved"), 0o700, OWNER)
    directory.looked_up()
    served.create("one/moved/file", b"text")
    served.inode("below").looked_up()
    served.link("one/moved/file", "below/file")
    inode = served.inode("below/file")
    inode.looked_up()
    file = served.opener.open(inode, writable=True)
    inode.opened()
    served.inodes.forget(directory.number, 1)
    served.rename("one/moved", "other/moved")
    file.sync_names()
    assert file.names_durable
    assert served.tree.unsynced_names.last_in(served.inode("other")) is None

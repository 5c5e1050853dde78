"""A file that was rewritten into a new backing file stays the same inode, for the kernel and its programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EIO

import pytest

from tdefs.data.backing_store import BackingStore
from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.forms import Encrypted
from tdefs.data.identity import identity_at
from tdefs.data.losses import Event
from tdefs.format.content import FileState
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, Identity
from tdefs.format.layout import HEADER_SIZE
from tdefs.fuse.handles import Handles
from tdefs.tree.attributes import Attributes, Changes
from tdefs.tree.exchanging import Exchanging
from tdefs.tree.inode import Backing, Inode
from tests.support.served_volume import ServedVolume, read_all

TABLE, SECOND = "base/16384/16385", "base/16384/16386"
CONTENT = os.urandom(20_000)
OWNER = Owner(os.geteuid(), os.getegid())


@pytest.fixture
def fd(served: ServedVolume) -> Iterator[int]:
    """The file that is to take the place of another one."""
    fd = os.open(served.data / "rewritten", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def rewrite(served: ServedVolume, fd: int, identity: Identity) -> None:
    """Writes the content under another data key, as a conversion does."""
    header = served.forms.new_header("dk_2", identity)
    store = BackingStore(SystemCalls(), fd)
    store.truncate(HEADER_SIZE)
    store.pwrite(served.forms.encode(header), 0)
    served.forms.content(header, store, FileState(0), lambda: None).write(0, CONTENT)


def put_at(served: ServedVolume, *paths: str) -> None:
    """Lets the new file take all names of the old one."""
    for path in paths:
        os.link(served.data / "rewritten", served.data / "name")
        (served.data / "name").rename(served.data / path)
    (served.data / "rewritten").unlink()


def key_name(inode: Inode) -> str:
    assert isinstance(inode.form, Encrypted)
    return inode.form.header.key_name


def file_id(inode: Inode) -> bytes:
    assert isinstance(inode.form, Encrypted)
    return inode.form.header.file_id


def test_an_open_file_goes_on_with_its_number_handles_and_data(served: ServedVolume, fd: int) -> None:
    served.create(TABLE, CONTENT)
    inode, handles = served.inode(TABLE), Handles()
    inode.looked_up()
    file = served.opener.open(inode, writable=True)
    handle, _ = handles.open_file(inode, file, os.O_RDWR)
    before = (inode.number, inode.generation, inode.names[:], inode.lookups, inode.handles, file.fd)
    old_backing, old_id = inode.backing, file_id(inode)
    inode.losses.failed(EIO, Event.FAILED_ANSWERED)
    file.names_durable = False

    served.files.manifest.will_change(inode)
    rewrite(served, fd, identity_at(TABLE))
    put_at(served, TABLE)
    before_exchange = file.lock.changes
    Exchanging(served.files).exchange(inode, fd, os.fstat(fd))

    assert (inode.number, inode.generation, inode.names, inode.lookups, inode.handles, file.fd) == before
    assert inode.backing == Backing.of(os.fstat(fd)) != old_backing
    assert served.inodes[inode.number] is inode
    assert served.inode(TABLE) is inode
    assert served.inodes.with_backing(old_backing) is None
    assert handles.file(handle).file is inode.open_file is file
    assert file.lock.changes > before_exchange, "a read that is under way would decrypt with the wrong key"
    with pytest.raises(OSError, match="Input/output error"):
        file.losses.report(Event.SYNC_OF_KERNEL)
    assert not file.names_durable
    assert not inode.bound
    ids = served.files.shared_ids.ids
    assert (ids.backings(old_id), ids.backings(file_id(inode))) == ([], [inode.backing])

    assert key_name(inode) == "dk_2"
    assert read_all(file) == CONTENT
    file.write(5, b"and more")
    assert Attributes(served.files).status(inode).st_ino == inode.backing.number
    Attributes(served.files).change(inode, Changes(mode=0o640, size=19_000))
    assert (served.data / TABLE).stat().st_mode & 0o777 == 0o640
    assert served.opener.open(inode, writable=True) is file
    served.opener.close_if_unused(handles.close_file(handle))
    served.remount()
    assert served.read(TABLE) == (CONTENT[:5] + b"and more" + CONTENT[13:])[:19_000]


def test_a_file_with_several_names_stays_one_inode_under_all_of_them(served: ServedVolume, fd: int) -> None:
    served.create(TABLE, CONTENT)
    served.link(TABLE, SECOND)
    inode = served.inode(TABLE)
    inode.looked_up()
    assert served.bound(TABLE) == (ANY_PLACE,)
    number = inode.number

    rewrite(served, fd, ANY_PLACE)
    put_at(served, TABLE, SECOND)
    Exchanging(served.files).exchange(inode, fd, os.fstat(fd))

    assert served.inode(TABLE) is served.inode(SECOND) is inode
    assert (inode.number, len(inode.names)) == (number, 2)
    assert served.read(TABLE) == served.read(SECOND) == CONTENT
    assert key_name(inode) == "dk_2"
    served.write(SECOND, 0, b"one")
    served.unlink(TABLE)
    assert served.read(SECOND) == b"one" + CONTENT[3:]


def test_a_file_that_gets_the_old_inode_number_below_is_another_inode(served: ServedVolume, fd: int) -> None:
    served.create(TABLE, CONTENT)
    inode = served.inode(TABLE)
    inode.looked_up()
    os.link(served.data / TABLE, served.data / "kept")  # as if the number were used again
    rewrite(served, fd, identity_at(TABLE))
    put_at(served, TABLE)
    Exchanging(served.files).exchange(inode, fd, os.fstat(fd))
    other = served.inode("kept")
    assert other is not inode
    assert other.number != inode.number


def test_a_new_file_that_cannot_be_presented_changes_nothing(served: ServedVolume, fd: int) -> None:
    served.create(TABLE, CONTENT)
    inode = served.inode(TABLE)
    inode.looked_up()
    file = served.opener.open(inode, writable=True)
    inode.opened()
    before = (inode.backing, inode.form, file.content)
    rewrite(served, fd, identity_at(TABLE))
    damaged = bytearray(os.pread(fd, RECORD_SIZE, 0))
    damaged[-1] ^= 1
    os.pwrite(fd, damaged, 0)
    with pytest.raises(OSError, match="Input/output error"):
        Exchanging(served.files).exchange(inode, fd, os.fstat(fd))
    assert (inode.backing, inode.form, file.content) == before
    assert served.inode(TABLE) is inode
    assert read_all(file) == CONTENT
    assert served.files.shared_ids.ids.backings(file_id(inode)) == [inode.backing]

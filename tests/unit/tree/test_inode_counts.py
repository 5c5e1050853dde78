"""An inode counts for itself how often it is in use, and lives as long as anything refers to it."""

from __future__ import annotations

import errno

import pytest

from tdefs.data.losses import Event, Loss
from tdefs.tree.inode import LastKnown
from tests.support.served_volume import ServedVolume

TABLE = "base/16384/16385"


def test_an_inode_lives_until_the_kernel_has_taken_back_every_lookup(served: ServedVolume) -> None:
    served.create(TABLE)
    served.opener.close_all_idle()
    inode = served.inode(TABLE)
    for _ in range(3):
        inode.looked_up()
    served.inodes.forget(inode.number, 2)
    assert served.inodes[inode.number] is inode
    served.inodes.forget(inode.number, 1)
    with pytest.raises(OSError) as caught:
        served.inodes[inode.number]
    assert caught.value.errno == errno.ESTALE


def test_an_open_file_keeps_its_inode_when_the_kernel_forgets_it(served: ServedVolume) -> None:
    served.create(TABLE)
    inode = served.inode(TABLE)
    inode.looked_up()
    served.opener.open(inode, writable=False)
    inode.opened()
    served.inodes.forget(inode.number, 1)
    assert served.inodes[inode.number] is inode
    inode.closed()
    served.opener.close_if_unused(inode)
    assert served.inodes.with_backing(inode.backing) is None


def test_a_loss_that_was_reported_ends_with_the_last_handle(served: ServedVolume) -> None:
    served.create(TABLE)
    inode = served.inode(TABLE)
    inode.opened()
    inode.opened()
    inode.losses.failed(errno.EIO, Event.FAILED_ANSWERED)
    states = []
    for _ in range(2):
        inode.closed()
        states.append(inode.losses.state)
    assert states == [Loss.REPORTED, Loss.NONE]


def test_what_was_last_known_goes_when_the_file_has_a_name_again(served: ServedVolume) -> None:
    served.create(TABLE)
    inode = served.inode(TABLE)
    inode.looked_up()
    status = (served.data / TABLE).stat()
    inode.names.clear()
    inode.lost_last_name(LastKnown(status, 0, 1, TABLE.encode()))
    assert inode.shown() == f"{TABLE} (removed)"
    assert served.inode(TABLE) is inode
    assert inode.last_known is None
    assert inode.shown() == TABLE


@pytest.mark.parametrize("count", ["lookups", "handles", "last_known"])
def test_nobody_but_the_inode_changes_its_counts(served: ServedVolume, count: str) -> None:
    with pytest.raises(AttributeError):
        setattr(served.inodes.root, count, 1)

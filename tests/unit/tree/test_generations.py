"""Number and generation together name one file: no other one ever has both, before or after it, in any mount."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EOPNOTSUPP
from pathlib import Path

import pytest

from tests.support.served_volume import ServedVolume


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedVolume]:
    volume = ServedVolume(tmp_path)
    yield volume
    volume.close()


def made_and_removed(served: ServedVolume, times: int) -> list[tuple[int, int]]:
    """Numbers and generations of files that came one after the other."""
    found = []
    for _ in range(times):
        served.create("file")
        inode = served.inode("file")
        found.append((inode.number, inode.generation))
        served.unlink("file")
    return found


def test_a_number_that_is_used_again_has_another_generation(served: ServedVolume) -> None:
    found = made_and_removed(served, 100)
    assert len(set(found)) == len(found)


def test_a_file_keeps_its_generation_when_it_is_forgotten_and_in_the_next_mount(served: ServedVolume) -> None:
    served.create("kept", b"content")
    inode = served.inode("kept")
    before = inode.generation
    served.opener.close_all_idle()
    served.inodes.drop_if_unused(inode)
    again = served.inode("kept")
    assert again is not inode
    assert again.generation == before
    served.rename("kept", "renamed")
    served.remount()
    assert served.inode("renamed").generation == before


def test_a_generation_is_new_each_time_where_the_disk_below_has_no_handles(served: ServedVolume) -> None:
    served.calls.fail = {"inodes:handle": EOPNOTSUPP}
    found = made_and_removed(served, 100)
    served.remount()
    served.calls.fail = {"inodes:handle": EOPNOTSUPP}
    found += made_and_removed(served, 100)
    assert len(set(found)) == len(found)
    assert all(0 <= generation < 1 << 32 for _, generation in found)

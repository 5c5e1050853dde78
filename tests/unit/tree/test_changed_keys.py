"""Keys that change while a volume is served: new rounds, revoked and destroyed ones."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tdefs.format.errors import FormatError
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing
from tests.support.served_volume import DK_1, DK_2, VOLUME_ID, ServedVolume

DK_1_2 = DataKey("dk_1", 2, AES_256_XTS, bytes(range(64, 96)))
OLD, NEW = "base/16384/16385", "base/16384/16386"


def ring(
    keys: Iterable[DataKey], *, revoked: tuple[str, int] | None = None, destroyed: tuple[str, int] | None = None
) -> KeyRing:
    return KeyRing(
        VOLUME_ID,
        "dk_1",
        keys,
        revoked=[revoked] if revoked else [],
        destroyed={destroyed: None} if destroyed else {},
        revision=2,
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedVolume]:
    volume = ServedVolume(tmp_path)
    volume.mkdirs("base/16384")
    volume.create(OLD, b"old content")
    yield volume
    volume.close()


def round_of(served: ServedVolume, path: str) -> int:
    return int.from_bytes(served.stored(path)[80:84], "little")


def error_of(action: object) -> int | None:
    """The errno that a program would get."""
    assert callable(action)
    try:
        action()
    except OSError as error:
        return error.errno
    except FormatError as error:
        return error.errno
    return None


def test_new_files_use_a_new_round_at_once_and_old_ones_stay_readable(served: ServedVolume) -> None:
    served.opener.open(served.inode(OLD), writable=True)
    served.inode(OLD).opened()
    served.opener.use_ring(ring([DK_1, DK_1_2, DK_2]))
    served.create(NEW, b"new content")
    assert (round_of(served, OLD), round_of(served, NEW)) == (1, 2)
    assert (served.read(OLD), served.read(NEW)) == (b"old content", b"new content")
    served.write(OLD, 0, b"OLD")
    assert served.read(OLD) == b"OLD content"
    served.rename(OLD, "base/16384/16400")
    assert served.read("base/16384/16400") == b"OLD content"
    assert round_of(served, "base/16384/16400") == 1


def test_key_without_an_active_round_gives_a_clear_error_and_no_file(served: ServedVolume) -> None:
    served.opener.use_ring(ring([DK_1, DK_2], revoked=("dk_1", 1)))
    assert error_of(lambda: served.create(NEW)) == errno.EKEYREVOKED
    assert not (served.data / NEW).exists()
    assert served.read(OLD) == b"old content"


def test_file_of_a_destroyed_key_gives_a_clear_error_and_can_be_removed(
    served: ServedVolume, caplog: pytest.LogCaptureFixture
) -> None:
    served.create(NEW, b"of the old round")
    served.opener.use_ring(ring([DK_1, DK_1_2, DK_2], revoked=("dk_1", 1)))
    served.create("base/16384/1", b"of the new round")
    served.opener.use_ring(ring([DK_1_2, DK_2], destroyed=("dk_1", 1)))
    with caplog.at_level(logging.ERROR):
        assert error_of(lambda: served.read(OLD)) == errno.ENOKEY
    assert "round 1 of data key dk_1 was destroyed" in caplog.text
    assert error_of(lambda: served.write(OLD, 0, b"x")) == errno.ENOKEY
    # what needs no key goes on, and so do all others
    assert served.length(OLD) == len(b"old content")
    assert served.read("base/16384/1") == b"of the new round"
    served.create("base/16384/2", b"after")
    assert served.read("base/16384/2") == b"after"
    assert error_of(lambda: served.rename(OLD, "base/16384/16401")) is None
    served.unlink(NEW)
    served.unlink("base/16384/16401")
    assert not (served.data / NEW).exists()
    # and after a new start
    served.create("base/16384/3", b"kept")
    served.remount(ring=ring([DK_1_2, DK_2], destroyed=("dk_1", 1)))
    assert served.read("base/16384/3") == b"kept"


def test_file_that_is_open_when_its_key_is_destroyed_stays_so_until_it_is_closed(served: ServedVolume) -> None:
    inode = served.inode(OLD)
    inode.looked_up()  # the kernel knows it, so that its file would be put aside instead of closed
    served.opener.open(inode, writable=True)
    inode.opened()
    served.opener.use_ring(ring([DK_1_2, DK_2], destroyed=("dk_1", 1)))
    assert served.read(OLD) == b"old content"
    inode.closed()
    served.opener.close_if_unused(inode)
    served.opener.use_ring(ring([DK_1_2, DK_2], destroyed=("dk_1", 1)))
    assert error_of(lambda: served.read(OLD)) == errno.ENOKEY


def test_key_that_comes_back_makes_its_files_readable(served: ServedVolume) -> None:
    served.opener.use_ring(ring([DK_1_2, DK_2], destroyed=("dk_1", 1)))
    assert error_of(lambda: served.read(OLD)) == errno.ENOKEY
    served.opener.use_ring(ring([DK_1, DK_1_2, DK_2]))
    assert served.read(OLD) == b"old content"

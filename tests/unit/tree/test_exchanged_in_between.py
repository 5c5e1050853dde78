"""Between two system calls of one request, somebody exchanges in the backing directory what it is about."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

from tdefs.data.calls import Owner
from tdefs.offline import recovery
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.tree.attributes import Attributes, Changes
from tdefs.tree.tree import Tree
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending, LastSession
from tests.support.children import needs_root
from tests.support.served_volume import VOLUME_ID, ScriptedCalls, ServedVolume

SECRET = b"a victim's"
#: Another group than the daemon's, so that what is made must be given away.
OWNER = Owner(0, 777)


class InterruptedCalls(ScriptedCalls):
    """System calls before one of which something happens, once."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], object]] = {}

    def _call(self, real: Callable[..., Any], label: str, *arguments: Any) -> Any:
        happens = self.before.pop(label, None)
        if happens is not None:
            happens()
        return super()._call(real, label, *arguments)


@pytest.fixture
def calls() -> InterruptedCalls:
    return InterruptedCalls()


@pytest.fixture
def served(tmp_path: Path, calls: InterruptedCalls, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedVolume]:
    """A volume with a directory and a file, and a victim beside it."""
    (tmp_path / "backing/data").mkdir(parents=True)
    (tmp_path / "victim").write_bytes(SECRET)
    (tmp_path / "victim").chmod(0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    volume = ServedVolume(tmp_path / "backing/data")
    monkeypatch.setattr(volume, "calls", calls)
    volume.remount()
    volume.mkdirs("base/16384")
    volume.create("file", b"content")
    volume.remount()
    yield volume
    calls.before.clear()
    volume.close()


def look(tmp_path: Path) -> list[tuple[object, ...]]:
    """Everything of the victims that could be changed."""
    found: list[tuple[object, ...]] = []
    for path in (tmp_path / "victim", tmp_path / "directory"):
        one = path.lstat()
        found.append((one.st_mode, one.st_uid, one.st_gid, one.st_size, one.st_mtime_ns))
    return found


def replace(place: Path, by: Callable[[Path], object]) -> Callable[[], object]:
    """What the attacker does."""

    def act() -> None:
        place.rename(place.parent / "taken away")
        by(place)

    return act


MAKES: dict[str, Callable[[ServedVolume], object]] = {
    "mkdir": lambda served: served.namespace.mkdir(served.inodes.root, b"new", 0o2755, OWNER),
    "mknod": lambda served: served.namespace.mknod(served.inodes.root, b"new", stat.S_IFREG | 0o600, 0, OWNER),
    "symlink": lambda served: served.namespace.symlink(served.inodes.root, b"new", b"target", OWNER),
}


@needs_root
@pytest.mark.parametrize("moment", ["adopt:stat", "adopt:open"])
@pytest.mark.parametrize("planted", ["link to the victim", "link to a directory", "hard link of the victim"])
@pytest.mark.parametrize("operation", MAKES)
def test_what_was_just_made_and_exchanged_is_not_given_away(
    served: ServedVolume, calls: InterruptedCalls, tmp_path: Path, operation: str, planted: str, moment: str
) -> None:
    plant: dict[str, Callable[[Path], object]] = {
        "link to the victim": lambda place: place.symlink_to(tmp_path / "victim"),
        "link to a directory": lambda place: place.symlink_to(tmp_path / "directory"),
        "hard link of the victim": lambda place: os.link(tmp_path / "victim", place),
    }
    before = look(tmp_path)
    calls.before[moment] = replace(served.data / "new", plant[planted])
    try:
        MAKES[operation](served)
    except OSError as error:
        assert error.errno == EIO
    assert moment not in calls.before
    assert look(tmp_path) == before, "the victim was changed"
    served.inodes.root.names.clear()
    served.inodes.root.names.append((served.inodes.root, b"."))


CHANGES = {
    "mode": Changes(mode=0o777),
    "owner": Changes(uid=777, gid=777),
    "times": Changes(atime_ns=1, mtime_ns=1),
    "length": Changes(size=0),
}


@needs_root
@pytest.mark.parametrize("planted", ["link", "hard link"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_exchanged_after_it_was_checked_is_not_changed(
    served: ServedVolume, calls: InterruptedCalls, tmp_path: Path, change: str, planted: str
) -> None:
    """The change goes to the file that was meant, wherever that lies by now."""
    inode = served.inode("file")
    inode.looked_up()  # the kernel's
    before = look(tmp_path)
    victim, place = tmp_path / "victim", served.data / "file"
    label = {
        "mode": "setattr:chmod",
        "owner": "setattr:chown",
        "times": "setattr:times",
        "length": "file:truncate",
    }
    calls.before[label[change]] = replace(
        place, (lambda at: at.symlink_to(victim)) if planted == "link" else (lambda at: os.link(victim, at))
    )
    Attributes(served.files).change(inode, CHANGES[change])
    assert calls.before == {}
    place.unlink()
    assert look(tmp_path) == before
    status = (served.data / "taken away").stat()
    assert {
        "mode": stat.S_IMODE(status.st_mode) == 0o777,
        "owner": (status.st_uid, status.st_gid) == (777, 777),
        "times": status.st_mtime_ns == 1,
        "length": status.st_size == 8192,
    }[change]


def test_a_file_exchanged_while_it_was_looked_at_is_not_emptied(
    served: ServedVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash: what is emptied is the file whose header was seen to be lost."""
    wiped = served.data / "base/16384/16385"
    wiped.write_bytes(bytes(3 * 8192))
    zeros = tmp_path / "zeros"
    zeros.write_bytes(bytes(3 * 8192))
    volume = Volume(served.data.parent, VOLUME_ID, tmp_path / "keystore")
    looks = recovery._lost_its_header

    def exchanged(volume: Volume, path: str) -> bool:
        found = looks(volume, path)
        if path.endswith("16385"):
            replace(wiped, lambda place: os.link(zeros, place))()
        return found

    monkeypatch.setattr(recovery, "_lost_its_header", exchanged)
    assert "base/16384/16385" not in empty_unfinished_files(volume, Believed(last=LastSession(Ending.UNCLEAN)))
    assert zeros.read_bytes() == bytes(3 * 8192)


def test_the_directory_that_was_checked_is_the_one_in_use(served: ServedVolume, tmp_path: Path) -> None:
    """One that was found stays what it is, wherever it is moved; one that is found anew must be it."""
    inode = served.inode("base")
    fd = served.places.directory_fd(inode)
    replace(served.data / "base", lambda place: place.symlink_to(tmp_path / "directory"))()
    assert served.places.directory_fd(inode) == fd
    fresh = Tree(served.calls, served._root_fd)
    place = fresh.inodes.enter(fresh.root, b"base", (served.data / "taken away").stat())
    with pytest.raises(OSError) as caught:
        fresh.places.directory_fd(place)
    assert caught.value.errno == EIO

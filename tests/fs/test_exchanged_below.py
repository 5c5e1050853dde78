"""Who can write to the backing directory exchanges what is in it, after the kernel has got to know it.

Whatever is then done through the mount: what was put there, and what it leads to, stays as it was.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EIO, errorcode
from pathlib import Path

import pytest

from tests.support.children import needs_root
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

CONTENT = b"victim" * 1000
TIME = 1_000_000_000 * 10**9

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF


@dataclass(frozen=True)
class Site:
    """A directory of its own for one case: *name* in it, as the mount shows it and as it is stored."""

    mounted: Path
    stored: Path
    outside: Path

    @property
    def victim(self) -> Path:
        return self.outside / "victim"

    @property
    def victim_directory(self) -> Path:
        return self.outside / "directory"


def _statx(path: Path) -> None:
    """Asks the daemon, whatever the kernel has cached."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _open(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            os.pwrite(fd, b"written", 0)
            os.fsync(fd)
        else:
            os.pread(fd, 100, 0)
    finally:
        os.close(fd)


#: Of a file.
ON_FILE: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o777),
    "chown": lambda path: os.chown(path, 65534, 65534),
    "utimens": lambda path: os.utime(path, ns=(5, 5)),
    "truncate": lambda path: os.truncate(path, 3),
    "open to read": lambda path: _open(path, os.O_RDONLY),
    "open to write": lambda path: _open(path, os.O_RDWR),
    "open and empty": lambda path: _open(path, os.O_RDWR | os.O_TRUNC),
    "stat": _statx,
    "link": lambda path: os.link(path, path.parent / "second"),
}
#: Of a symbolic link itself.
ON_LINK: dict[str, Callable[[Path], object]] = {
    "read the link": os.readlink,
    "chown of the link": lambda path: os.chown(path, 65534, 65534, follow_symlinks=False),
    "utimens of the link": lambda path: os.utime(path, ns=(5, 5), follow_symlinks=False),
    "link of the link": lambda path: os.link(path, path.parent / "second", follow_symlinks=False),
}
#: Of a directory, and of what is in it.
ON_DIRECTORY: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o777),
    "chown": lambda path: os.chown(path, 65534, 65534),
    "utimens": lambda path: os.utime(path, ns=(5, 5)),
    "stat": _statx,
    "list": os.listdir,
    "create in it": lambda path: (path / "new").write_bytes(b"new"),
    "mkdir in it": lambda path: (path / "new").mkdir(),
    "mkfifo in it": lambda path: os.mkfifo(path / "new"),
    "symlink in it": lambda path: (path / "new").symlink_to("x"),
    "unlink in it": lambda path: (path / "inner").unlink(),
    "chmod in it": lambda path: (path / "inner").chmod(0o777),
    "read in it": lambda path: _open(path / "inner", os.O_RDONLY),
    "link into it": lambda path: os.link(path.parent / "file", path / "new"),
    "rename in it": lambda path: (path / "inner").rename(path / "new"),
    "rename into it": lambda path: (path.parent / "file").rename(path / "inner"),
    "rename out of it": lambda path: (path / "inner").rename(path.parent / "new"),
}
#: Of a name: what lies there goes, whatever it is.
ON_NAME: dict[str, Callable[[Path], object]] = {
    "unlink": lambda path: path.unlink(),
    "rename": lambda path: path.rename(path.parent / "new"),
    "rename over it": lambda path: (path.parent / "other").rename(path),
}


def _planted_file(site: Site, place: Path) -> None:
    (site.outside / "planted").rename(place)


def _hard_link(site: Site, place: Path) -> None:
    os.link(site.victim, place)


#: What is put in the place of a file.
FOR_FILE: dict[str, Callable[[Site, Path], object]] = {
    "symbolic link": lambda site, place: place.symlink_to(site.victim),
    "symbolic link to a directory": lambda site, place: place.symlink_to(site.victim_directory),
    "other file": _planted_file,
    "hard link of the victim": _hard_link,
    "FIFO": lambda site, place: os.mkfifo(place),
    "directory": lambda site, place: place.mkdir(),
}
#: What is put in the place of a directory.
FOR_DIRECTORY: dict[str, Callable[[Site, Path], object]] = {
    "symbolic link to a directory": lambda site, place: place.symlink_to(site.victim_directory),
    "symbolic link to a file": lambda site, place: place.symlink_to(site.victim),
    "other directory": lambda site, place: site.victim_directory.rename(place),
    "file": _planted_file,
}
#: What is put in the place of a symbolic link.
FOR_LINK: dict[str, Callable[[Site, Path], object]] = {
    "other link": lambda site, place: place.symlink_to(site.victim),
    "hard link of the victim": _hard_link,
    "FIFO": lambda site, place: os.mkfifo(place),
}
FOR = {"file": FOR_FILE, "directory": FOR_DIRECTORY, "link": FOR_LINK}
CASES = [
    *((kind, "file", operation) for kind in FOR_FILE for operation in (*ON_FILE, *ON_NAME)),
    *((kind, "directory", operation) for kind in FOR_DIRECTORY for operation in ON_DIRECTORY),
    *((kind, "link", operation) for kind in FOR_LINK for operation in ON_LINK),
]


def _place_of(root: Path, number: int) -> Path:
    return root / f"case{number}"


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume with what each case needs; the daemon has opened nothing of it since it was mounted."""
    volume = workspace.volume("exchanged")
    volume.init()
    volume.mount()
    for number in range(len(CASES)):
        place = _place_of(volume.mountpoint, number)
        (place / "directory").mkdir(parents=True)
        for name in ("file", "other", "directory/inner"):
            (place / name).write_bytes(b"content")
        (place / "link").symlink_to("file")
    volume.umount()
    volume.mount()
    yield volume
    volume.umount()
    workspace.volumes.remove(volume)


@pytest.fixture
def site(request: pytest.FixtureRequest, served: Volume) -> Site:
    number = CASES.index(request.node.callspec.params["case"])
    outside = served.backing / f"outside{number}"
    (outside / "directory").mkdir(parents=True)
    for name in ("victim", "planted", "directory/inner"):
        (outside / name).write_bytes(CONTENT)
        (outside / name).chmod(0o600)
    for path in (outside / "victim", outside / "directory"):
        os.utime(path, ns=(TIME, TIME))
    return Site(_place_of(served.mountpoint, number), _place_of(served.data, number), outside)


@pytest.mark.parametrize("case", CASES, ids=" - ".join)
def test_nothing_is_done_to_what_was_put_in_the_place_of_what_the_kernel_knows(
    served: Volume, site: Site, case: tuple[str, str, str]
) -> None:
    kind, name, operation = case
    for path in (site.mounted / name, site.mounted / "file", site.mounted / "other"):
        path.lstat()  # now the kernel knows
    stored = site.stored / name
    stored.rename(site.outside / "taken away")
    FOR[name][kind](site, stored)
    put = stored.lstat()
    moved = site.outside / "directory" if kind != "other directory" else stored
    before = _look(site, moved)
    complaints = len(served.complaints())
    action = {**ON_FILE, **ON_LINK, **ON_NAME, **ON_DIRECTORY}[operation]
    if operation in ON_NAME:
        with suppress(OSError):
            action(site.mounted / name)
    else:
        with pytest.raises(OSError) as caught:
            action(site.mounted / name)
        assert errorcode[caught.value.errno or 0] == errorcode[EIO]
        after = stored.lstat()
        assert _attributes(after) == _attributes(put), "what was put there was changed"
        new = served.complaints()[complaints:]
        assert any("something else lies in its place" in line and site.mounted.name in line for line in new), new
    assert _look(site, moved) == before, "what is outside was changed"
    assert os.listdir(served.mountpoint), "the mount is dead"


def _attributes(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _look(site: Site, directory: Path) -> list[object]:
    """Everything of what is outside that could be changed; *directory* may have been put into the tree."""
    found: list[object] = []
    for path in (site.victim, directory, *sorted(directory.iterdir())):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found.append(
            (path, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, content)
        )
    return found

"""After an error that may have lost data no sync says success until all who may rely on it have closed the file.

PostgreSQL takes a failed fsync for a reason to panic and recover from WAL, so it must be told of every loss at
least once: also when the file was closed and opened again in between.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.crash.faults.orders import Faults, Order
from tests.crash.faults.places import verified
from tests.fs.libc import entries
from tests.support.caches import drop_caches
from tests.support.children import in_child, needs_root
from tests.support.processes import wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

PAGE = b"p" * 8192
EIO = Order(methods=("pwrite",))

_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_ALL = 7  # wait before, write, wait after


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[tuple[Volume, Faults]]:
    """A mounted volume whose system calls can be made to fail, shared by the tests here."""
    volume = workspace.volume("errors-stay")
    volume.init()
    faults = Faults(volume, workspace.directory("faults"))
    volume.mount()
    (volume.mountpoint / "base" / "5").mkdir(parents=True)
    (volume.mountpoint / "pg_wal").mkdir()
    yield volume, faults
    faults.order()
    volume.umount()
    verified(volume)
    workspace.volumes.remove(volume)


@pytest.fixture
def faults(served: tuple[Volume, Faults]) -> Iterator[Faults]:
    yield served[1]
    served[1].order()


@pytest.fixture
def path(served: tuple[Volume, Faults], request: pytest.FixtureRequest) -> Path:
    """A relation file of three durable pages, of its own for each test."""
    path = served[0].mountpoint / "base" / "5" / str(20000 + len(list((served[0].data / "base/5").iterdir())))
    with path.open("wb") as file:
        file.write(PAGE * 3)
        file.flush()
        os.fsync(file.fileno())
    return path


def failure(do: Callable[[], object]) -> int:
    """The errno of what it raised; 0 for success."""
    try:
        do()
    except OSError as error:
        return error.errno or -1
    return 0


def sync(path: Path) -> int:
    """Opens, syncs and closes, as the checkpointer does; the errno of the sync."""
    fd = os.open(path, os.O_RDWR)
    try:
        return failure(lambda: os.fsync(fd))
    finally:
        os.close(fd)


def sync_file_range(fd: int) -> None:
    if _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_ALL) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def lose_a_write(path: Path, faults: Faults, code: int = errno.EIO) -> int:
    """Writes a page that does not reach the disk, and closes; nobody syncs. The errno of close(2)."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"lost" * 2048, 8192)
    with faults.armed(Order(methods=("pwrite",), errno=code)):
        return failure(lambda: os.close(fd))


def forget_inodes() -> None:
    """Has the kernel forget what nobody has open."""
    drop_caches(3)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_failed_write_back_fails_every_sync_until_all_have_closed(path: Path, faults: Faults, code: int) -> None:
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    os.pwrite(first, b"lost" * 2048, 8192)
    with faults.armed(Order(methods=("pwrite",), errno=code)):
        assert failure(lambda: os.fsync(first)) == code
    for _ in range(3):
        assert failure(lambda: os.fsync(first)) == code
        assert failure(lambda: os.fdatasync(first)) == code
    assert failure(lambda: os.fsync(second)) == code
    assert in_child(lambda: sync(path)) == code
    os.close(first)
    assert failure(lambda: os.fsync(second)) == code
    os.close(second)
    path.write_bytes(PAGE * 3)
    assert sync(path) == 0


@pytest.mark.parametrize("datasync", [False, True], ids=["fsync", "fdatasync"])
def test_a_failed_sync_fails_every_sync_until_all_have_closed(path: Path, faults: Faults, datasync: bool) -> None:
    syncing = os.fdatasync if datasync else os.fsync
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    os.pwrite(first, b"lost" * 2048, 8192)
    with faults.armed(Order(labels=("fsync", "fsync:data"), times=1)):
        assert failure(lambda: syncing(first)) == errno.EIO
    assert failure(lambda: syncing(first)) == errno.EIO
    assert failure(lambda: syncing(second)) == errno.EIO
    assert in_child(lambda: sync(path)) == errno.EIO
    os.close(first)
    os.close(second)
    assert sync(path) == 0


def test_a_loss_is_told_by_close(path: Path, faults: Faults) -> None:
    assert lose_a_write(path, faults) == errno.EIO


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_loss_that_nobody_synced_is_told_to_who_opens_the_file_next(
    path: Path, faults: Faults, code: int
) -> None:
    """A backend writes and exits, the checkpointer opens and syncs."""
    in_child(lambda: lose_a_write(path, faults, code))
    faults.order()
    assert sync(path) == code


@needs_root
@pytest.mark.parametrize("closed_below", [False, True], ids=["open below", "closed below"])
def test_a_loss_that_nobody_synced_is_told_also_when_the_kernel_has_forgotten_the_file(
    path: Path, faults: Faults, closed_below: bool
) -> None:
    lose_a_write(path, faults, errno.ENOSPC)
    if closed_below:
        # what the daemon keeps open for later is given up
        with faults.armed(Order(labels=("opendir",), errno=errno.EMFILE)):
            assert failure(lambda: os.listdir(path.parent)) == errno.EMFILE
    forget_inodes()
    fd = os.open(path, os.O_RDWR)
    assert failure(lambda: os.fsync(fd)) == errno.ENOSPC
    assert failure(lambda: os.fsync(fd)) == errno.ENOSPC
    os.close(fd)
    assert sync(path) == 0


def test_a_loss_that_was_told_is_not_told_again_after_all_have_closed(path: Path, faults: Faults) -> None:
    """Otherwise the recovery after PostgreSQL's panic would panic, too."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"lost" * 2048, 8192)
    with faults.armed(EIO):
        assert failure(lambda: os.fsync(fd)) == errno.EIO
    os.close(fd)
    assert sync(path) == 0


def test_a_loss_in_a_mapping_is_told_by_msync_and_every_sync_after(path: Path, faults: Faults) -> None:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 3 * 8192) as memory:
        memory[8192:8200] = b"lost now"
        with faults.armed(EIO):
            assert failure(memory.flush) == errno.EIO
        assert failure(memory.flush) == errno.EIO
        assert failure(lambda: os.fsync(fd)) == errno.EIO
    os.close(fd)


def test_a_loss_in_a_mapping_that_outlived_its_descriptor_is_told(path: Path, faults: Faults) -> None:
    fd = os.open(path, os.O_RDWR)
    memory = mmap.mmap(fd, 3 * 8192)
    os.close(fd)
    memory[8192:8200] = b"lost now"
    with faults.armed(EIO):
        memory.close()
        subprocess.run(["sync", "-f", path.parent], check=False)
    assert sync(path) == errno.EIO


def test_a_loss_told_by_sync_file_range_is_told_by_fsync_too(path: Path, faults: Faults) -> None:
    """PostgreSQL takes sync_file_range for a hint and relies on fsync."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"lost" * 2048, 8192)
    with faults.armed(EIO):
        assert failure(lambda: sync_file_range(fd)) == errno.EIO
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    os.close(fd)


def test_a_loss_is_told_by_syncfs(path: Path, faults: Faults) -> None:
    root = os.open(path.parent, os.O_RDONLY)
    lose_a_write(path, faults)
    assert _libc.syncfs(root) != 0
    os.close(root)


def test_the_kernel_keeps_syncfs_to_itself(path: Path, faults: Faults) -> None:
    """So nothing becomes durable by it, and the doctor warns of PostgreSQL's settings that rely on it."""
    # failures of the tests before, of which the kernel has told nobody who asked for the whole file system
    subprocess.run(["sync", "-f", path.parent], stderr=subprocess.DEVNULL, check=False)
    path.write_bytes(PAGE)
    with faults.armed():
        number = faults.number
        subprocess.run(["sync", "-f", path.parent], check=True)
    methods = {call.method for call in faults.called(number)}
    assert not methods & {"fsync", "fdatasync", "syncfs"}, "it is passed on: tdefs can sync the disk below now"


@pytest.mark.parametrize("label", ["file:write", "fsync:data"])
@pytest.mark.parametrize("name", ["pg_wal/00000001000000000000000{}", "base/5/3000{}"], ids=["wal", "relation"])
def test_a_durable_write_that_failed_fails_and_so_do_later_syncs(
    served: tuple[Volume, Faults], faults: Faults, name: str, label: str
) -> None:
    """WAL opened with O_DSYNC goes past the kernel's cache, other files through it."""
    path = served[0].mountpoint / name.format(1 + ["file:write", "fsync:data"].index(label))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    os.pwrite(fd, PAGE, 0)
    labels = (label, "fsync") if label == "fsync:data" else (label,)
    with faults.armed(Order(labels=labels, times=1)):
        assert failure(lambda: os.pwrite(fd, b"l" * 8192, 0)) == errno.EIO
    if "pg_wal" in name and label == "file:write":
        # nothing was accepted, so nothing is lost
        assert in_child(lambda: sync(path)) == 0
    else:
        assert failure(lambda: os.fsync(fd)) == errno.EIO
        assert failure(lambda: os.pwrite(fd, b"m" * 8192, 0)) == errno.EIO
        assert in_child(lambda: sync(path)) == errno.EIO
    os.close(fd)
    fd = os.open(path, os.O_RDWR | os.O_DSYNC)
    os.pwrite(fd, PAGE, 0)
    os.close(fd)
    assert path.read_bytes() == PAGE


def test_a_failed_sync_of_the_directory_fails_the_sync_of_a_new_file_and_every_later_one(
    path: Path, faults: Faults
) -> None:
    new = path.with_name(f"{path.name}1")
    fd = os.open(new, os.O_RDWR | os.O_CREAT)
    with faults.armed(Order(labels=("fsync:entry",), times=1)):
        assert failure(lambda: os.fsync(fd)) == errno.EIO
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    os.close(fd)
    assert sync(new) == 0


def test_a_failed_sync_of_a_directory_fails_the_syncs_of_all_new_files_in_it(path: Path, faults: Faults) -> None:
    """The kernel tells of a failed sync of a directory once, too."""
    directory = path.parent / "new"
    directory.mkdir()
    one, other = (os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in ("1", "2"))
    opened = os.open(directory, os.O_RDONLY)
    with faults.armed(Order(labels=("fsync:entry",), times=1)):
        assert failure(lambda: os.fsync(one)) == errno.EIO
    assert failure(lambda: os.fsync(other)) == errno.EIO
    assert failure(lambda: os.fsync(opened)) == errno.EIO
    for fd in (one, other, opened):
        os.close(fd)
    assert sync(directory / "2") == 0


def test_a_failed_fsync_of_a_directory_fails_every_later_one_and_those_of_its_new_files(
    path: Path, faults: Faults
) -> None:
    directory = path.parent / "new2"
    directory.mkdir()
    file = os.open(directory / "1", os.O_RDWR | os.O_CREAT)
    one, other = os.open(directory, os.O_RDONLY), os.open(directory, os.O_RDONLY)
    with faults.armed(Order(labels=("fsyncdir",), times=1)):
        assert failure(lambda: os.fsync(one)) == errno.EIO
    assert failure(lambda: os.fsync(one)) == errno.EIO
    assert failure(lambda: os.fsync(other)) == errno.EIO
    assert failure(lambda: os.fsync(file)) == errno.EIO
    for fd in (one, other, file):
        os.close(fd)
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_a_sync_that_failed_within_a_rename_is_told_by_fsync(path: Path, faults: Faults) -> None:
    """A relation's header is synced with the file that it heads: the kernel below has told of the loss then."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, PAGE, 8192)
    with faults.armed(Order(labels=("bind:sync",), times=1)):
        assert failure(lambda: path.rename(path.with_name(f"{path.name}9"))) == errno.EIO
    assert path.exists()
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    os.close(fd)
    path.rename(path.with_name(f"{path.name}9"))
    assert path.with_name(f"{path.name}9").read_bytes() == PAGE * 3


def test_a_sync_that_failed_after_a_rename_is_told_by_fsync(path: Path, faults: Faults) -> None:
    """The rename has happened, so it succeeds; what its last step has lost is told later."""
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, PAGE, 8192)
    new = path.with_name(f"{path.name}9")
    with faults.armed(Order(labels=("bind:sync",), skip=1, times=1)):
        path.rename(new)
    os.close(fd)
    assert sync(new) == errno.EIO
    assert sync(new) == 0
    assert new.read_bytes() == PAGE * 3


def test_a_write_that_damage_below_made_fail_is_told_by_every_sync(
    path: Path, served: tuple[Volume, Faults], faults: Faults
) -> None:
    """Part of a page is written, the rest of it is gone from the disk."""
    below = served[0].data / path.relative_to(served[0].mountpoint)
    fd = os.open(path, os.O_RDWR)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.truncate(below, 8192 + 8192)
    memory = mmap.mmap(fd, 3 * 8192)
    os.pwrite(fd, b"x" * 4096, 8192 + 4096)
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    assert failure(lambda: os.fsync(fd)) == errno.EIO
    memory.close()
    os.close(fd)
    path.unlink()


def test_a_mount_whose_last_sync_failed_does_not_count_as_cleanly_ended(scratch: Workspace) -> None:
    volume = scratch.volume("syncfs")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"))
    volume.mount()
    (volume.mountpoint / "PG_VERSION").write_text("15\n")
    faults.order(Order(labels=("session:sync",)))
    volume.tdefs("umount", volume.mountpoint, check=False)
    assert not volume.is_mounted
    assert '"clean": false' in (volume.backing / ".tdefs" / "session.json").read_text()
    assert "Input/output error" in volume.log_tail()
    faults.order()
    volume.mount()
    assert (volume.mountpoint / "PG_VERSION").read_text() == "15\n"
    volume.umount()
    assert '"clean": true' in (volume.backing / ".tdefs" / "session.json").read_text()


def test_a_policy_that_first_leaves_files_in_the_clear_waits_until_all_headers_are_on_the_disk(
    scratch: Workspace,
) -> None:
    volume = scratch.volume("policy-sync")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"))
    volume.mount()
    volume.accept(policy="version: 1\nkinds: {configuration: plain}\n")
    before = volume.status()["policy_digest"]
    faults.order(Order(labels=("policy:sync",)))
    done = volume.tdefs("policy", "reload", volume.mountpoint, check=False)
    assert (done.returncode, "Input/output error" in done.stderr) == (Exit.OS_ERROR, True)
    assert volume.status()["policy_digest"] == before
    faults.order()
    volume.tdefs("policy", "reload", volume.mountpoint)
    assert volume.status()["policy_digest"] != before
    volume.umount()


def test_a_file_that_cannot_be_looked_at_is_listed_with_the_others_and_has_its_length_afterwards(
    served: tuple[Volume, Faults], faults: Faults
) -> None:
    volume = served[0]
    directory = volume.mountpoint / "listed"
    directory.mkdir()
    for name in ("known", "model"):
        (directory / name).write_bytes(b"x" * 1001)
    os.sync()
    # one that the daemon has not seen yet, with a file id that no other file has
    content = (volume.data / "listed" / "model").read_bytes()
    (directory / "model").unlink()
    (volume.data / "listed" / "unknown").write_bytes(content)
    with faults.armed(Order(labels=("form:read",))):
        assert sorted(os.listdir(directory)) == ["known", "unknown"]
        assert failure((directory / "unknown").stat) == errno.EIO
        assert (directory / "known").stat().st_size == 1001
    assert (directory / "unknown").stat().st_size == 1001
    assert (directory / "unknown").read_bytes() == b"x" * 1001


@pytest.mark.parametrize("label", ["lookup", "form:open"])
@pytest.mark.parametrize("skip", range(4))
def test_a_name_of_which_nothing_can_be_told_is_listed_as_itself(
    served: tuple[Volume, Faults], faults: Faults, label: str, skip: int
) -> None:
    """Neither with what was found of the name before it, nor, as the first one, not at all."""
    volume = served[0]
    name = f"listed-{label.replace(':', '-')}-{skip}"
    directory = volume.mountpoint / name
    below = volume.data / name
    directory.mkdir()
    (directory / "model").write_bytes(b"content")
    os.sync()
    content = (below / "model").read_bytes()
    (directory / "model").unlink()
    # what the daemon has not seen yet, so that it is asked
    kinds = {"directory": stat.S_IFDIR, "link": stat.S_IFLNK, "file": stat.S_IFREG, "other file": stat.S_IFREG}
    (below / "directory").mkdir()
    (below / "link").symlink_to("target")
    for file in ("file", "other file"):
        (below / file).write_bytes(content)
    known = volume.status()["known_inodes"]
    with faults.armed(Order(labels=(label,), skip=skip, times=1)):
        number = faults.number
        listed = {os.fsdecode(entry): told for entry, told in entries(directory).items()}
        failed = len(faults.failed(number))
    assert listed.keys() == kinds.keys()
    assert len({inode for inode, _ in listed.values()}) == len(kinds)
    # d_type is the type's bits of the mode, 0 for an unknown one
    wrong = [file for file, kind in kinds.items() if listed[file][1] != kind >> 12]
    assert [listed[file][1] for file in wrong] == [0] * (failed if label == "lookup" else 0)
    for file, kind in kinds.items():
        status = (directory / file).lstat()
        assert stat.S_IFMT(status.st_mode) == kind
        assert kind != stat.S_IFREG or status.st_size == len(b"content")
    # nothing that stood in for a file stays
    assert wait_until(lambda: volume.status()["known_inodes"] == known + len(kinds), 10)
    log = volume.log.read_text()
    assert "unexpected error in readdir" not in log
    assert f"readdir of {name}/" in log or not failed


@pytest.mark.parametrize(
    ("label", "make"),
    [
        ("link:stat", lambda path, new: new.hardlink_to(path)),
        ("adopt:stat", lambda path, new: new.mkdir()),
        ("adopt:stat", lambda path, new: new.symlink_to("somewhere")),
        ("adopt:stat", lambda path, new: new.touch()),
        ("create:header", lambda path, new: new.touch()),
    ],
    ids=["link", "mkdir", "symlink", "create", "header"],
)
def test_what_could_not_be_made_is_not_there_and_can_be_made_later(
    path: Path, faults: Faults, label: str, make: Callable[[Path, Path], None]
) -> None:
    new = path.with_name(f"{path.name}_fsm")
    with faults.armed(Order(labels=(label,))):
        assert failure(lambda: make(path, new)) == errno.EIO
    assert new.name not in os.listdir(path.parent)
    assert path.stat().st_nlink == 1
    make(path, new)
    assert new.name in os.listdir(path.parent)


def test_a_journal_that_cannot_be_begun_keeps_the_volume_from_being_mounted_and_bound(scratch: Workspace) -> None:
    volume = scratch.volume("journal-begin")
    volume.init()
    faults = Faults(volume, scratch.directory("faults"))
    volume.mount()
    (volume.mountpoint / "PG_VERSION").write_text("15\n")
    volume.umount()
    words: list[str | Path] = [
        "mount",
        volume.backing,
        volume.mountpoint,
        *volume.unlock,
        "--log-file",
        volume.log,
    ]
    for method in ("pwrite", "fdatasync"):
        for code in (errno.ENOSPC, errno.EIO):
            faults.order(Order(labels=("journal:begin",), methods=(method,), errno=code))
            done = volume.tdefs(*words, check=False)
            assert done.returncode == Exit.OS_ERROR, done.stderr
            assert f'.tdefs/changed": {os.strerror(code)}' in done.stderr
            assert "HINT: " in done.stderr
            assert not volume.is_mounted
    faults.order()
    os.truncate(volume.data / "PG_VERSION", 0)
    volume.mount()
    assert failure((volume.mountpoint / "PG_VERSION").read_bytes) == errno.EIO, "it is bound still"
    volume.umount()

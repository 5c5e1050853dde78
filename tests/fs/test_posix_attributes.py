"""Owner, mode, times, lengths and link counts are what a plain directory shows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fs.libc import UTIME_NOW, UTIME_OMIT, utimens
from tests.fs.twins import Twins, identity
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import Volume

NANOSECONDS = 1_000_000_000


def times(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_atime_ns, status.st_mtime_ns


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o177])
@pytest.mark.parametrize("mode", [0o666, 0o600, 0o755, 0o4755, 0o2700, 0o1000, 0])
@pytest.mark.usefixtures("umask")
def test_new_nodes_have_the_mode_less_the_umask(twins: Twins, mode: int, mask: int) -> None:
    def make(directory: Path) -> list[tuple[int, ...]]:
        os.umask(mask)
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, mode))
        (directory / "directory").mkdir(mode)
        os.mkfifo(directory / "fifo", mode)
        os.mknod(directory / "node", mode)
        return [identity(path.lstat()) for path in sorted(directory.iterdir())]

    twins.same(make)


@pytest.mark.parametrize("name", ["file", "directory", "fifo"])
def test_chmod_sets_every_bit(twins: Twins, name: str) -> None:
    def change(directory: Path) -> list[tuple[int, ...]]:
        (directory / "file").touch()
        (directory / "directory").mkdir()
        os.mkfifo(directory / "fifo")
        seen = []
        for mode in (0o777, 0, 0o4711, 0o2755, 0o1777, 0o7777, 0o640):
            (directory / name).chmod(mode)
            seen.append(identity((directory / name).lstat()))
        return seen

    twins.same(change)


@needs_root
def test_chown_changes_owner_and_group_each_alone_and_takes_set_id_bits(twins: Twins) -> None:
    def change(directory: Path) -> list[tuple[int, ...]]:
        paths = [directory / "file", directory / "directory", directory / "link"]
        paths[0].touch()
        paths[1].mkdir()
        paths[2].symlink_to("nowhere")
        seen = []
        for uid, gid in ((1234, -1), (-1, 4321), (NOBODY, 17), (0, 0), (4_000_000_000, 4_000_000_001)):
            for path in paths:
                if not path.is_symlink():
                    path.chmod(0o6755)
                os.chown(path, uid, gid, follow_symlinks=False)
                seen.append(identity(path.lstat()))
        return seen

    twins.same(change)


@pytest.mark.parametrize("kind", ["file", "open file", "directory", "link"])
def test_each_time_is_set_alone_to_the_nanosecond(twins: Twins, kind: str) -> None:
    def change(directory: Path) -> list[tuple[int, int]]:
        path = directory / "node"
        match kind:
            case "directory":
                path.mkdir()
            case "link":
                path.symlink_to("nowhere")
            case _:
                path.write_bytes(b"content that the kernel has not passed on")
        fd = os.open(path, os.O_RDWR) if kind == "open file" else -1
        utimens(path, (1_000_000_000, 123_456_789), (1_500_000_000, 987_654_321))
        seen = [times(path)]
        utimens(path, (1_700_000_001, 1), UTIME_OMIT)
        seen.append(times(path))
        utimens(path, UTIME_OMIT, (1_700_000_002, 999_999_999))
        seen.append(times(path))
        utimens(path, UTIME_OMIT, UTIME_OMIT)
        seen.append(times(path))
        if fd >= 0:
            os.utime(fd, ns=(5, 6))
            seen.append(times(path))
            os.close(fd)
            seen.append(times(path))
        return seen

    twins.same(change)


@pytest.mark.parametrize("which", ["atime", "mtime", "both"])
def test_a_time_is_set_to_now_alone(twins: Twins, which: str) -> None:
    def change(directory: Path) -> tuple[bool, bool]:
        path = directory / "file"
        path.write_bytes(b"1")
        utimens(path, (1_000_000_000, 1), (1_000_000_000, 1))
        before = time.time_ns() - NANOSECONDS // 10
        utimens(
            path,
            UTIME_OMIT if which == "mtime" else UTIME_NOW,
            UTIME_OMIT if which == "atime" else UTIME_NOW,
        )
        atime, mtime = times(path)
        return before <= atime <= time.time_ns(), before <= mtime <= time.time_ns()

    assert twins.same(change) == (which != "mtime", which != "atime")


@pytest.mark.parametrize(
    "seconds", [0, -1, -1_000_000, 2**31 - 1, 2**31, 2**32 + 5, 1 - 2**31], ids=lambda second: f"second {second}"
)
def test_times_long_ago_and_far_ahead_are_kept(twins: Twins, seconds: int) -> None:
    def change(directory: Path) -> tuple[int, int]:
        path = directory / "file"
        path.touch()
        utimens(path, (seconds, 250_000_000), (seconds, 750_000_000))
        return times(path)

    twins.same(change)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda directory: (directory / "file").write_bytes(b"other content"),
    "append": lambda directory: (directory / "file").open("ab").write(b"more"),
    "truncate to less": lambda directory: os.truncate(directory / "file", 3),
    # Truncating to the length that a file has is left out: on any FUSE mount with write-back caching the kernel
    # keeps the times then (fs/fuse/dir.c, fuse_do_setattr), as POSIX allows, while ext4 sets them.
    "truncate to more": lambda directory: os.truncate(directory / "file", 20_000),
    "chmod": lambda directory: (directory / "file").chmod(0o640),
    "chown": lambda directory: os.chown(directory / "file", os.getuid(), os.getgid()),
    "link": lambda directory: (directory / "other").hardlink_to(directory / "file"),
    "unlink of a link": lambda directory: (directory / "linked2").unlink(),
    "rename": lambda directory: (directory / "file").rename(directory / "renamed"),
    "rename of a relation file": lambda directory: (directory / "base/5/16385").rename(directory / "base/5/16386"),
    "rename into a directory": lambda directory: (directory / "file").rename(directory / "sub" / "renamed"),
    "replace": lambda directory: (directory / "file").rename(directory / "linked"),
    "mkdir": lambda directory: (directory / "new").mkdir(),
    "rmdir": lambda directory: (directory / "empty").rmdir(),
    "create": lambda directory: (directory / "new").touch(),
    "symlink": lambda directory: (directory / "new").symlink_to("file"),
    "open with O_TRUNC": lambda directory: os.close(os.open(directory / "file", os.O_WRONLY | os.O_TRUNC)),
    "open for writing": lambda directory: os.close(os.open(directory / "file", os.O_RDWR)),
    "mkdir below": lambda directory: (directory / "sub" / "new").mkdir(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_touches_the_times_and_link_counts_that_it_touches_on_plain_disk(twins: Twins, name: str) -> None:
    past = 1_000_000_000

    def change(directory: Path) -> dict[str, tuple[bool, bool, int]]:
        (directory / "file").write_bytes(b"12345678")
        (directory / "linked").write_bytes(b"abc")
        (directory / "linked2").hardlink_to(directory / "linked")
        (directory / "empty").mkdir()
        (directory / "sub").mkdir()
        (directory / "base" / "5").mkdir(parents=True)
        (directory / "base" / "5" / "16385").write_bytes(b"12345678")
        paths = [directory, *directory.rglob("*")]
        for path in paths:
            os.utime(path, ns=(past, past))
        before = {path: path.lstat() for path in paths}
        time.sleep(0.03)
        CHANGES[name](directory)
        seen = {}
        for path in (directory, *directory.rglob("*")):
            status = path.lstat()
            # a file that was renamed is found by its number
            old = next((one for one in before.values() if one.st_ino == status.st_ino), None)
            if old is not None:
                modified, changed = status.st_mtime_ns != old.st_mtime_ns, status.st_ctime_ns != old.st_ctime_ns
                seen[str(path.relative_to(directory))] = (modified, changed, status.st_nlink)
        return seen

    twins.same(change)


def test_times_of_written_files_are_the_same_after_the_last_handle_is_closed(twins: Twins) -> None:
    def write(directory: Path) -> list[bool]:
        path = directory / "file"
        with path.open("wb") as file:
            file.write(b"1" * 100_000)
            file.flush()
            os.utime(path, ns=(10**18, 10**18))
            seen = [times(path) == (10**18, 10**18)]
            os.fsync(file.fileno())
            seen.append(times(path)[1] == 10**18)
        seen.append(times(path)[1] == 10**18)
        os.sync()
        seen.append(times(path)[1] == 10**18)
        return seen

    twins.same(write)


def test_link_counts_of_directories_count_their_subdirectories(twins: Twins) -> None:
    def count(directory: Path) -> list[int]:
        counts = [directory.stat().st_nlink]
        (directory / "one" / "two").mkdir(parents=True)
        (directory / "three").mkdir()
        counts += [directory.stat().st_nlink, (directory / "one").stat().st_nlink]
        (directory / "one" / "two").rename(directory / "three" / "two")
        counts += [(directory / "one").stat().st_nlink, (directory / "three").stat().st_nlink]
        (directory / "one").rmdir()
        return [*counts, directory.stat().st_nlink]

    twins.same(count)


def test_the_root_of_the_mount_counts_its_own_subdirectories_only(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    assert root.stat().st_nlink == 2
    (root / "base").mkdir()
    (root / "global").mkdir()
    assert root.stat().st_nlink == 4
    (root / "base").rmdir()
    assert root.stat().st_nlink == 3


def test_the_root_of_the_mount_has_owner_mode_and_times_of_its_own(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    root.chmod(0o710)
    os.utime(root, ns=(10**18, 10**18 + 1))
    if os.geteuid() == 0:
        os.chown(root, 123, 456)
    before = root.stat()
    volume.umount()
    volume.mount()
    after = root.stat()
    assert identity(after) == identity(before)
    assert (after.st_mtime_ns, after.st_mode & 0o7777) == (10**18 + 1, 0o710)


def test_blocks_tell_what_is_allocated(twins: Twins) -> None:
    def blocks(path: Path) -> int:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        return path.stat().st_blocks * 512

    for directory in (twins.plain, twins.mount):
        path = directory / "file"
        path.touch()
        assert blocks(path) <= 8192
        path.write_bytes(os.urandom(1 << 20))
        assert 1 << 20 <= blocks(path) <= (1 << 20) + 65536
        os.truncate(path, 1 << 30)
        assert blocks(path) <= (1 << 20) + 65536
        os.truncate(path, 0)
        assert blocks(path) <= 8192


def test_statvfs_shows_the_file_system_below(twins: Twins) -> None:
    fields = ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")

    def figures(directory: Path) -> list[int]:
        status = os.statvfs(directory)
        return [getattr(status, field) for field in fields]

    twins.same(figures)
    plain, mount = os.statvfs(twins.plain), os.statvfs(twins.mount)
    assert mount.f_bavail == pytest.approx(plain.f_bavail, rel=0.05)
    assert mount.f_ffree == pytest.approx(plain.f_ffree, rel=0.05)


@pytest.mark.parametrize("uid", [pytest.param(None, id="own"), pytest.param(NOBODY, id="other", marks=needs_root)])
def test_access_answers_what_may_be_done(twins: Twins, uid: int | None) -> None:
    def ask(directory: Path) -> list[list[bool]]:
        path = directory / "file"
        path.touch()
        answers = []
        for mode in (0, 0o400, 0o222, 0o111, 0o755, 0o007, 0o644):
            path.chmod(mode)
            answers.append(
                in_child(
                    lambda: [
                        os.access(path, how) for how in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK)
                    ],
                    uid=uid,
                )
            )
        return [*answers, [os.access(directory / "missing", os.F_OK)]]

    twins.same(ask)


def test_there_are_no_extended_attributes_and_tools_do_not_mind(twins: Twins) -> None:
    path = twins.mount / "file"
    path.write_bytes(b"1")
    for action in (
        lambda: os.setxattr(path, "user.one", b"1"),
        lambda: os.getxattr(path, "user.one"),
        lambda: os.removexattr(path, "user.one"),
    ):
        with pytest.raises(OSError, match="not supported"):
            action()
    with suppress(OSError):
        assert os.listxattr(path) == []
    assert in_child(lambda: os.system(f"cp -a {path} {path}2 && ls -l {path}2 >/dev/null")) == 0  # noqa: S605


def test_the_status_of_a_removed_directory_can_still_be_asked(twins: Twins) -> None:
    def ask(directory: Path) -> list[object]:
        (directory / "gone").mkdir()
        fd = os.open(directory / "gone", os.O_RDONLY)
        try:
            (directory / "gone").rmdir()
            return [os.fstat(fd).st_nlink, os.listdir(fd)]
        finally:
            os.close(fd)

    twins.same(ask)


def test_an_unlinked_file_held_by_its_path_descriptor_can_still_be_asked(twins: Twins) -> None:
    def ask(directory: Path) -> tuple[int, ...]:
        (directory / "file").write_bytes(b"12345")
        fd = os.open(directory / "file", os.O_PATH)
        try:
            (directory / "file").unlink()
            return identity(os.fstat(fd))
        finally:
            os.close(fd)

    twins.same(ask)

"""A daemon of root serves every user as plain disk would: owners, groups and permissions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.twins import Twins, content, identity
from tests.support.children import NOBODY, in_child, needs_root

pytestmark = needs_root

OTHER = 4242
GROUP = 777


def test_what_a_user_makes_is_the_users(twins: Twins) -> None:
    def make(directory: Path) -> object:
        directory.chmod(0o777)

        def work() -> None:
            (directory / "file").write_bytes(b"1" * 9000)
            (directory / "directory").mkdir()
            (directory / "directory" / "inner").touch()
            (directory / "link").symlink_to("file")
            os.mkfifo(directory / "fifo")
            os.mknod(directory / "node", 0o2640)
            (directory / "hard").hardlink_to(directory / "file")
            (directory / "file").chmod(0o4755)
            os.chown(directory / "file", -1, GROUP)

        in_child(work, uid=NOBODY, gid=OTHER, groups=(GROUP,))
        return {str(path.relative_to(directory)): identity(path.lstat()) for path in sorted(directory.rglob("*"))}

    twins.same(make)


def test_a_directory_with_the_set_group_id_bit_hands_its_group_down(twins: Twins) -> None:
    def make(directory: Path) -> object:
        shared = directory / "shared"
        shared.mkdir()
        os.chown(shared, 0, GROUP)
        shared.chmod(0o2777)

        def work() -> None:
            (shared / "file").touch()
            os.close(os.open(shared / "program", os.O_CREAT | os.O_WRONLY, 0o2777))
            (shared / "directory").mkdir()
            (shared / "directory" / "inner").mkdir()
            (shared / "link").symlink_to("file")
            os.mkfifo(shared / "fifo")

        in_child(work, uid=NOBODY, gid=NOBODY)
        work2 = shared / "by root"
        work2.mkdir()
        return {str(path.relative_to(directory)): identity(path.lstat()) for path in sorted(directory.rglob("*"))}

    twins.same(make)


ATTEMPTS: dict[str, Callable[[Path], object]] = {
    "read a file of root": lambda d: (d / "private").read_bytes(),
    "write a file of root": lambda d: (d / "readable").write_bytes(b"1"),
    "append to a file of root": lambda d: os.open(d / "readable", os.O_WRONLY | os.O_APPEND),
    "truncate a file of root": lambda d: os.truncate(d / "readable", 0),
    "open a file of root with O_TRUNC": lambda d: os.open(d / "readable", os.O_RDONLY | os.O_TRUNC),
    "chmod a file of root": lambda d: (d / "readable").chmod(0o777),
    "chown a file of root": lambda d: os.chown(d / "readable", NOBODY, NOBODY),
    "chown the own file away": lambda d: os.chown(d / "own", 0, -1),
    "give the own file to a foreign group": lambda d: os.chown(d / "own", -1, 0),
    "set times of a file of root": lambda d: os.utime(d / "readable", (1, 1)),
    "touch a file of root": lambda d: os.utime(d / "readable"),
    "list a closed directory": lambda d: os.listdir(d / "closed"),
    "stat in a closed directory": lambda d: (d / "closed" / "file").stat(),
    "create in a readable directory": lambda d: (d / "listed" / "new").touch(),
    "mkdir in a readable directory": lambda d: (d / "listed" / "new").mkdir(),
    "unlink in a readable directory": lambda d: (d / "listed" / "file").unlink(),
    "rename in a readable directory": lambda d: (d / "listed" / "file").rename(d / "listed" / "new"),
    "unlink another's file in a sticky directory": lambda d: (d / "sticky" / "others").unlink(),
    "rename another's file in a sticky directory": lambda d: (d / "sticky" / "others").rename(
        d / "sticky" / "new"
    ),
    "replace another's file in a sticky directory": lambda d: (d / "own").rename(d / "sticky" / "others"),
    "run a file without the right": lambda d: os.execv(d / "readable", ["x"]),  # noqa: S606
    "make a device": lambda d: os.mknod(d / "device", 0o020666, os.makedev(1, 3)),
    "open a write-only own file to read": lambda d: (d / "writable only").read_bytes(),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_a_user_may_not_do_is_refused(twins: Twins, name: str) -> None:
    def prepare(directory: Path) -> None:
        directory.chmod(0o777)
        (directory / "private").write_bytes(b"secret")
        (directory / "private").chmod(0o600)
        (directory / "readable").write_bytes(b"public")
        (directory / "readable").chmod(0o644)
        for place, mode in (("closed", 0o700), ("listed", 0o755), ("sticky", 0o1777)):
            (directory / place).mkdir()
            (directory / place / "file").touch()
            (directory / place).chmod(mode)
        for path, uid in (("own", NOBODY), ("sticky/others", OTHER), ("writable only", NOBODY)):
            (directory / path).write_bytes(b"1")
            os.chown(directory / path, uid, uid)
        (directory / "writable only").chmod(0o200)

    twins.each(prepare)
    twins.same_error(lambda directory: in_child(lambda: ATTEMPTS[name](directory), uid=NOBODY))
    assert content(twins.mount) == content(twins.plain)


def test_groups_open_what_they_own_to_their_members(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(b"for the group")
        os.chown(path, 0, GROUP)
        path.chmod(0o640)
        seen: list[object] = [in_child(path.read_bytes, uid=NOBODY, groups=(5, GROUP))]
        for groups in ((), (GROUP,)):
            try:
                seen.append(in_child(lambda: os.open(path, os.O_RDWR), uid=NOBODY, groups=groups))
            except OSError as error:
                seen.append(error.errno)
        path.chmod(0o660)
        in_child(lambda: path.write_bytes(b"by a member"), uid=NOBODY, groups=(GROUP,))
        return [*seen, path.read_bytes()]

    twins.same(use)


def test_a_write_by_a_user_takes_set_id_bits_away(twins: Twins) -> None:
    def use(directory: Path) -> object:
        seen = []
        for action in ("write", "truncate", "chown", "chmod"):
            path = directory / action
            path.write_bytes(b"program")
            os.chown(path, NOBODY, GROUP)
            path.chmod(0o6777)

            def work(path: Path = path, action: str = action) -> None:
                match action:
                    case "write":
                        with path.open("r+b") as file:
                            file.write(b"changed")
                    case "truncate":
                        os.truncate(path, 1)
                    case "chown":
                        os.chown(path, -1, NOBODY)
                    case "chmod":
                        path.chmod(0o2755)

            in_child(work, uid=NOBODY, gid=NOBODY)
            seen.append(identity(path.stat()))
        return seen

    twins.same(use)


def test_a_user_writes_to_a_file_that_the_user_may_not_read(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "log"
        path.write_bytes(b"0123456789" * 1000)
        path.chmod(0o622)

        def work() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"appended")
            os.close(fd)
            fd = os.open(path, os.O_WRONLY)
            os.pwrite(fd, b"inside", 8190)
            os.close(fd)

        in_child(work, uid=NOBODY)
        return path.read_bytes()

    twins.same(use)


def test_a_descriptor_keeps_the_rights_that_it_was_opened_with(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(b"1" * 10_000)
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o600)

        def work() -> bytes:
            fd = os.open(path, os.O_RDWR)
            path.chmod(0)
            os.pwrite(fd, b"still written", 5)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, 20, 0)

        return in_child(work, uid=NOBODY), path.read_bytes()

    twins.same(use)

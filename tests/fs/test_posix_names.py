"""Making, removing, linking and renaming names works as in a plain directory."""

# pathlib drops "." and "..", and has no names of any bytes
# ruff: noqa: PTH104, PTH106, PTH110, PTH115, PTH116

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.fs.twins import Twins, content, identity
from tests.support.children import in_child
from tests.support.volume import Volume

#: Two names in one directory: ordinary ones, and relation files, whose headers are rewritten with their names.
NAMES = [
    pytest.param(("one", "two"), id="ordinary"),
    pytest.param(("base/5/16385", "base/5/16386_fsm.1"), id="relation"),
]


def make(directory: Path, names: tuple[str, str], kinds: tuple[str, str]) -> tuple[Path, Path]:
    """Makes up to two nodes of these kinds: file, directory, full (directory), link or none."""
    paths = directory / names[0], directory / names[1]
    for path, kind in zip(paths, kinds, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "file":
                path.write_bytes(path.name.encode() * 3000)
            case "directory":
                path.mkdir()
            case "full":
                path.mkdir()
                (path / "inner").write_bytes(b"inner of " + path.name.encode())
            case "link":
                path.symlink_to("nowhere")
    return paths


KINDS = ["file", "directory", "full", "link", "none"]


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE], ids=["replace", "noreplace", "exchange"])
@pytest.mark.parametrize("names", NAMES)
def test_rename_does_for_all_kinds_what_plain_disk_does(twins: Twins, names: tuple[str, str], flags: int) -> None:
    def rename(directory: Path, old: str, new: str) -> object:
        place = directory / f"{old}-{new}"
        place.mkdir()
        first, second = make(place, names, (old, new))
        try:
            renameat2(first, second, flags)
        except OSError as error:
            return error.errno, content(place)
        return content(place), {str(path.relative_to(place)): identity(path.lstat()) for path in place.rglob("*")}

    def rename_all(directory: Path) -> list[object]:
        return [rename(directory, old, new) for old in KINDS for new in KINDS]

    twins.same(rename_all)


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE], ids=["replace", "exchange"])
@pytest.mark.parametrize("names", NAMES)
def test_files_that_are_open_while_they_are_renamed_or_replaced_stay_what_they_are(
    twins: Twins, names: tuple[str, str], flags: int
) -> None:
    def rename(directory: Path) -> object:
        first, second = make(directory, names, ("file", "file"))
        one, two = os.open(first, os.O_RDWR), os.open(second, os.O_RDWR)
        try:
            os.pwrite(one, b"before", 10)
            renameat2(first, second, flags)
            os.pwrite(one, b"written to one", 8190)
            os.pwrite(two, b"written to two", 8190)
            os.fsync(one)
            seen = [os.pread(fd, 30_000, 0) for fd in (one, two)], [os.fstat(fd).st_nlink for fd in (one, two)]
        finally:
            os.close(one)
            os.close(two)
        return seen, content(directory)

    twins.same(rename)


ERRORS: dict[str, Callable[[Path], object]] = {
    "rename of nothing": lambda d: (d / "none").rename(d / "other"),
    "rename into nothing": lambda d: (d / "file").rename(d / "none" / "other"),
    "rename into a file": lambda d: (d / "file").rename(d / "file2" / "other"),
    "rename of a directory into itself": lambda d: (d / "full").rename(d / "full" / "inside"),
    "rename with unknown flags": lambda d: renameat2(d / "file", d / "file2", 64),
    "rename with both flags": lambda d: renameat2(d / "file", d / "file2", 3),
    "rename over a full directory": lambda d: (d / "empty").rename(d / "full"),
    "rename of .": lambda d: os.rename(f"{d}/full/.", d / "other"),
    "exchange with nothing": lambda d: renameat2(d / "file", d / "none", RENAME_EXCHANGE),
    "link to an existing name": lambda d: (d / "file2").hardlink_to(d / "file"),
    "link of a directory": lambda d: (d / "other").hardlink_to(d / "full"),
    "link of nothing": lambda d: (d / "other").hardlink_to(d / "none"),
    "symlink at an existing name": lambda d: (d / "file").symlink_to("x"),
    "mkdir at an existing name": lambda d: (d / "file").mkdir(),
    "mkdir in nothing": lambda d: (d / "none" / "x").mkdir(),
    "mkdir in a file": lambda d: (d / "file" / "x").mkdir(),
    "rmdir of a full directory": lambda d: (d / "full").rmdir(),
    "rmdir of a file": lambda d: (d / "file").rmdir(),
    "rmdir of nothing": lambda d: (d / "none").rmdir(),
    "rmdir of .": lambda d: os.rmdir(f"{d}/empty/."),
    "rmdir of ..": lambda d: os.rmdir(f"{d}/empty/.."),
    "unlink of a directory": lambda d: (d / "empty").unlink(),
    "unlink of nothing": lambda d: (d / "none").unlink(),
    "readlink of a file": lambda d: (d / "file").readlink(),
    "open of nothing": lambda d: (d / "none").open("rb"),
    "open of a directory for writing": lambda d: os.open(d / "full", os.O_WRONLY),
    "open of a file as a directory": lambda d: os.open(d / "file", os.O_RDONLY | os.O_DIRECTORY),
    "open of a symlink with O_NOFOLLOW": lambda d: os.open(d / "link", os.O_RDONLY | os.O_NOFOLLOW),
    "open of a loop of symlinks": lambda d: (d / "loop").open("rb"),
    "exclusive create of an existing file": lambda d: os.open(d / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR),
    "exclusive create of a dangling symlink": lambda d: os.open(d / "link", os.O_CREAT | os.O_EXCL | os.O_RDWR),
    "create of a directory": lambda d: os.open(d / "full", os.O_CREAT | os.O_RDWR),
    "create with a trailing slash": lambda d: os.open(f"{d}/none/", os.O_CREAT | os.O_RDWR),
    "mknod at an existing name": lambda d: os.mkfifo(d / "file"),
    "a name of 256 bytes": lambda d: (d / ("x" * 256)).touch(),
    "stat of a name of 256 bytes": lambda d: (d / ("x" * 256)).stat(),
    "mkdir of a name of 256 bytes": lambda d: (d / ("x" * 256)).mkdir(),
    "rename to a name of 256 bytes": lambda d: (d / "file").rename(d / ("x" * 256)),
    "symlink at a name of 256 bytes": lambda d: (d / ("x" * 256)).symlink_to("x"),
    "link to a name of 256 bytes": lambda d: (d / ("x" * 256)).hardlink_to(d / "file"),
    "a path of 4096 bytes": lambda d: os.stat(f"{d}/" + "x/" * 2048),
    "a symlink to 4096 bytes": lambda d: (d / "long").symlink_to("x" * 4096),
    "an empty symlink": lambda d: os.symlink("", d / "empty link"),
    "truncate of a directory": lambda d: os.truncate(d / "full", 0),
    "truncate of nothing": lambda d: os.truncate(d / "none", 0),
    "truncate to less than nothing": lambda d: os.truncate(d / "file", -1),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_done_fails_as_on_plain_disk_and_changes_nothing(twins: Twins, name: str) -> None:
    def try_it(directory: Path) -> object:
        (directory / "file").write_bytes(b"1")
        (directory / "file2").write_bytes(b"2")
        (directory / "empty").mkdir()
        make(directory, ("full", "unused"), ("full", "none"))
        (directory / "link").symlink_to("nowhere")
        (directory / "loop").symlink_to("loop")
        return ERRORS[name](directory)

    twins.same_error(try_it)
    assert content(twins.mount) == content(twins.plain)


def test_hard_links_are_one_file(twins: Twins) -> None:
    def link(directory: Path) -> object:
        one, two, three = directory / "one", directory / "two", directory / "sub" / "three"
        three.parent.mkdir()
        one.write_bytes(b"content")
        two.hardlink_to(one)
        three.hardlink_to(two)
        seen: list[object] = [one.stat().st_nlink, one.stat().st_ino == three.stat().st_ino]
        three.write_bytes(b"changed" * 5000)
        seen.append(one.read_bytes())
        one.unlink()
        seen += [two.stat().st_nlink, two.read_bytes()]
        three.rename(directory / "four")
        two.unlink()
        seen += [(directory / "four").stat().st_nlink, (directory / "four").read_bytes()]
        return seen

    twins.same(link)


def test_rename_between_two_links_of_one_file_does_nothing(twins: Twins) -> None:
    def rename(directory: Path) -> object:
        (directory / "one").write_bytes(b"1")
        (directory / "two").hardlink_to(directory / "one")
        os.rename(directory / "one", directory / "two")
        return content(directory), (directory / "one").stat().st_nlink

    twins.same(rename)


@pytest.mark.parametrize("target", ["file", "/absolute/path", "../up", "x" * 2957, "dangling", " ", "ü\n\\040"])
def test_symlinks_say_where_they_point(twins: Twins, target: str) -> None:
    def link(directory: Path) -> object:
        (directory / "file").write_bytes(b"1")
        (directory / "link").symlink_to(target)
        return (
            os.readlink(directory / "link"),
            identity((directory / "link").lstat()),
            os.path.exists(directory / "link"),
        )

    twins.same(link)


def test_symlinks_are_followed_in_the_mount_and_out_of_it(twins: Twins) -> None:
    (twins.mount / "out").symlink_to(twins.plain)
    (twins.mount / "out" / "file").write_bytes(b"outside")
    assert (twins.plain / "file").read_bytes() == b"outside"
    (twins.plain / "in").symlink_to(twins.mount)
    (twins.plain / "in" / "inside").write_bytes(b"inside")
    assert (twins.mount / "inside").read_bytes() == b"inside"


def test_an_unlinked_open_file_is_read_written_and_changed_to_its_end(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(b"first" * 10_000)
        fd = os.open(path, os.O_RDWR)
        try:
            path.unlink()
            path.write_bytes(b"another file of the same name")
            os.pwrite(fd, b"second", 100_000)
            os.ftruncate(fd, 99_999)
            os.ftruncate(fd, 120_001)
            os.pwrite(fd, b"third", 5)
            os.fsync(fd)
            os.fdatasync(fd)
            os.fchmod(fd, 0o640)
            os.utime(fd, ns=(1, 2))
            status = os.fstat(fd)
            return os.pread(fd, 200_000, 0), identity(status), status.st_mtime_ns, path.read_bytes()
        finally:
            os.close(fd)

    twins.same(use)


def test_a_file_unlinked_while_dirty_and_open_read_only_elsewhere_keeps_its_content(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        with path.open("wb") as writer:
            writer.write(b"0123456789" * 5000)
        reader = os.open(path, os.O_RDONLY)
        try:
            path.unlink()
            os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.pread(reader, 100_000, 0)
        finally:
            os.close(reader)

    twins.same(use)


def test_names_of_any_bytes_are_kept(twins: Twins) -> None:
    names = [
        b"\xff\xfe\x80",
        "ünïcode\N{SNOWMAN}".encode(),
        b"with\nnewline",
        b" ",
        b"\\040",
        b"a,b=c",
        b"x" * 255,
        b"-rf",
        b"\x01",
    ]

    def make_all(directory: Path) -> object:
        for name in names:
            path = os.fsencode(directory) + b"/" + name
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(name)
            os.rename(path, os.fsencode(directory) + b"/renamed")
            os.rename(os.fsencode(directory) + b"/renamed", path)
        seen = sorted(os.listdir(os.fsencode(directory)))
        return seen, [open(os.fsencode(directory) + b"/" + name, "rb").read() for name in names]  # noqa: PTH123

    twins.same(make_all)


def test_trees_deeper_than_any_path_work_step_by_step(twins: Twins) -> None:
    """Beyond PATH_MAX, and deeper than any number of directories that the daemon holds descriptors of."""
    depth = 700

    def walk(directory: Path) -> object:
        bottoms = []
        for tree in ("one", "two"):
            fd = os.open(directory, os.O_RDONLY)
            for name in (tree, *(["directory"] * depth)):
                os.mkdir(name, dir_fd=fd)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            bottoms.append(fd)
        one, two = bottoms
        try:
            file = os.open("file", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=one)
            os.write(file, b"at the bottom")
            os.fsync(file)
            os.close(file)
            os.rename("file", "moved", src_dir_fd=one, dst_dir_fd=two)
            os.link("moved", "linked", src_dir_fd=two, dst_dir_fd=one)
            os.symlink("moved", "symbolic", dir_fd=two)
            seen: list[object] = [sorted(os.listdir(one)), sorted(os.listdir(two))]
            file = os.open("linked", os.O_RDONLY, dir_fd=one)
            seen.append(os.read(file, 100))
            os.close(file)
            os.rename("linked", "moved", src_dir_fd=one, dst_dir_fd=two)
            os.rename("moved", "back", src_dir_fd=two, dst_dir_fd=one)
            return [*seen, sorted(os.listdir(one)), sorted(os.listdir(two))]
        finally:
            os.close(one)
            os.close(two)

    twins.same(walk)


def test_a_tree_deeper_than_any_stack_is_renamed_as_a_whole(twins: Twins) -> None:
    depth = 1000

    def rename(directory: Path) -> object:
        fd = top = os.open(directory, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            if fd != top:
                os.close(fd)
            fd = below
        try:
            os.close(os.open("file", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=fd))
            os.rename("d", "renamed", src_dir_fd=top, dst_dir_fd=top)
            return sorted(os.listdir(top)), os.listdir(fd)
        finally:
            os.close(fd)
            os.close(top)

    twins.same(rename)


def test_a_directory_that_was_renamed_takes_its_open_files_along(twins: Twins) -> None:
    def rename(directory: Path) -> object:
        old = directory / "base" / "5"
        old.mkdir(parents=True)
        (old / "16385").write_bytes(b"first")
        fd, place = os.open(old / "16385", os.O_RDWR), os.open(old, os.O_RDONLY)
        try:
            old.rename(directory / "base" / "7")
            os.pwrite(fd, b"second", 9000)
            file = os.open("16385", os.O_RDONLY, dir_fd=place)
            seen = os.read(file, 10_000)
            os.close(file)
            os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=place))
            return seen, content(directory)
        finally:
            os.close(fd)
            os.close(place)

    twins.same(rename)


def test_fifos_and_sockets_carry_data_within_the_mount(twins: Twins) -> None:
    def talk(directory: Path) -> object:
        os.mkfifo(directory / "fifo")
        reader = os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(directory / "fifo", os.O_WRONLY)
        os.write(writer, b"through the fifo")
        seen: list[object] = [os.read(reader, 100)]
        os.close(reader)
        os.close(writer)
        here = os.open(directory, os.O_PATH)
        address = f"/proc/self/fd/{here}/socket"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(address)
            server.listen()
            client.connect(address)
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"through the socket")
                seen.append(accepted.recv(100))
        os.close(here)
        seen.append([identity(path.lstat()) for path in sorted(directory.iterdir())])
        (directory / "socket").unlink()
        return seen

    twins.same(talk)


def test_programs_run_from_the_mount(twins: Twins) -> None:
    program = shutil.which("true")
    assert program

    def run(directory: Path) -> object:
        shutil.copy(program, directory / "program")
        (directory / "script").write_text("#!/bin/sh\nexit 3\n")
        (directory / "script").chmod(0o755)
        return [subprocess.run([directory / name], check=False).returncode for name in ("program", "script")]

    twins.same(run)


def test_pythons_own_tools_copy_move_and_remove_a_tree(twins: Twins) -> None:
    source = Path(os.__file__).parent / "json"

    def use(directory: Path) -> object:
        shutil.copytree(source, directory / "one", symlinks=True)
        shutil.move(directory / "one", directory / "two")
        subprocess.run(["cp", "-a", directory / "two", directory / "three"], check=True)
        subprocess.run(["tar", "-C", directory, "-cf", directory / "tar", "two"], check=True)
        shutil.rmtree(directory / "two")
        subprocess.run(["tar", "-C", directory, "-xf", directory / "tar"], check=True)
        (directory / "tar").unlink()
        subprocess.run(["diff", "-r", directory / "two", directory / "three"], check=True)
        return content(directory)

    twins.same(use)


def test_tdefs_own_directory_is_neither_seen_nor_reached_nor_made(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    private = root / ".tdefs"
    (root / "file").write_bytes(b"1")
    (root / "directory").mkdir()
    assert sorted(os.listdir(root)) == ["directory", "file"]
    # of that name there is only the directory of virtual files
    assert os.listdir(private) == ["status.json"]
    before = sorted(os.listdir(volume.backing / ".tdefs"))
    assert "volume.json" in before
    for name in before:
        assert not os.path.lexists(private / name)
    attempts: list[Callable[[], object]] = [
        (private / "volume.json").lstat,
        (private / "volume.json").read_bytes,
        lambda: os.open(private / "volume.json", os.O_RDONLY),
        lambda: os.open(private / "volume.json", os.O_WRONLY | os.O_CREAT),
        lambda: (private / "volume.json").unlink(),
        lambda: private.mkdir(),
        lambda: private.rmdir(),
        lambda: private.unlink(),
        lambda: private.touch(),
        lambda: private.symlink_to("file"),
        lambda: private.hardlink_to(root / "file"),
        lambda: os.mkfifo(private),
        lambda: (root / "file").rename(private),
        lambda: (root / "directory").rename(private),
        lambda: renameat2(root / "directory", private, RENAME_EXCHANGE),
        lambda: renameat2(root / "directory", private, RENAME_NOREPLACE),
        lambda: private.rename(root / "stolen"),
        lambda: private.chmod(0o700),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match=r"\[Errno"):
            attempt()
    assert sorted(os.listdir(root)) == ["directory", "file"]
    assert os.listdir(private) == ["status.json"]
    assert (volume.backing / ".tdefs" / "volume.json").exists()
    assert sorted(os.listdir(volume.backing / ".tdefs")) == before
    (root / "directory" / ".tdefs").mkdir()
    assert os.listdir(root / "directory") == [".tdefs"]


def test_file_names_do_not_reach_out_of_a_directory_that_was_moved(twins: Twins) -> None:
    def move(directory: Path) -> object:
        (directory / "a" / "b").mkdir(parents=True)
        fd = os.open(directory / "a" / "b", os.O_RDONLY)
        try:
            (directory / "a" / "b").rename(directory / "c")
            os.mkdir("../made", dir_fd=fd)
            return content(directory)
        finally:
            os.close(fd)

    twins.same(move)


def test_many_processes_make_and_rename_at_once(twins: Twins) -> None:
    def work(directory: Path) -> object:
        script = (
            "import os, sys\n"
            "os.chdir(sys.argv[1]); me = sys.argv[2]\n"
            "for i in range(100):\n"
            "    name = f'{me}.{i}'\n"
            "    with open(name, 'wb') as file: file.write(name.encode() * 50)\n"
            "    os.rename(name, f'kept.{name}')\n"
            "    with open('shared', 'ab') as file: file.write(b'x')\n"
        )
        children = [subprocess.Popen([sys.executable, "-c", script, directory, str(n)]) for n in range(4)]
        assert [child.wait(60) for child in children] == [0] * 4
        return content(directory)

    twins.same(work)


def test_the_working_directory_of_a_process_is_known_by_its_name(twins: Twins) -> None:
    (twins.mount / "one" / "two").mkdir(parents=True)

    def ask() -> str:
        os.chdir(twins.mount / "one" / "two")
        (twins.mount / "one").rename(twins.mount / "three")
        return os.getcwd()

    assert in_child(ask) == str(twins.mount / "three" / "two")

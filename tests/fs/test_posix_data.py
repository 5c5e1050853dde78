"""What is written is what is read, through every way of opening, of every length, as on plain disk."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EOPNOTSUPP
from pathlib import Path

import pytest

from tests.fs.libc import fallocate
from tests.fs.twins import Twins
from tests.support.children import end_of, in_child

PAGE = 8192
LENGTHS = [0, 1, 15, 16, 17, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 8207, 8208, 8209, 3 * PAGE + 5]
DIRECT = os.O_DIRECT


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that tell their position."""
    text = b"".join(b"%07d%d" % (number, seed) for number in range(size // 8 + 1))
    return text[:size]


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def aligned(data: bytes) -> mmap.mmap:
    """A buffer at a page boundary, as O_DIRECT wants it."""
    buffer = mmap.mmap(-1, max(len(data), 1))
    buffer[: len(data)] = data
    return buffer


def read_direct(path: Path) -> bytes:
    """The content, past the kernel's cache."""
    size = path.stat().st_size
    with opened(path, os.O_RDONLY | DIRECT) as fd, mmap.mmap(-1, size + 8192) as buffer:
        got = os.preadv(fd, [memoryview(buffer)[: (size + 4096) // 4096 * 4096]], 0)
        return buffer[:got]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_is_kept_and_read_back(data_twins: Twins, length: int) -> None:
    def write(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(pattern(length))
        seen: list[object] = [path.stat().st_size, path.read_bytes(), read_direct(path)]
        with opened(path, os.O_RDONLY) as fd:
            seen += [
                os.pread(fd, 100, max(0, length - 50)),
                os.pread(fd, 10, length),
                os.pread(fd, 10, length + 9999),
            ]
        with path.open("ab") as file:
            file.write(b"appended")
        seen += [path.stat().st_size, read_direct(path)]
        return seen

    data_twins.same(write)


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 8191, 8192, 8193, 16384, 20_001])
def test_truncating_to_less_and_to_more_leaves_zeros_behind_the_cut(data_twins: Twins, first: int) -> None:
    def cut(directory: Path) -> object:
        seen: list[object] = []
        for second in (0, 1, 15, 16, 17, 511, 513, 8191, 8192, 8193, 16384, 20_001):
            path = directory / f"{first}-{second}"
            path.write_bytes(pattern(20_000))
            os.truncate(path, first)
            with opened(path, os.O_RDWR) as fd:
                os.ftruncate(fd, second)
                os.fsync(fd)
                seen.append((path.stat().st_size, os.pread(fd, 30_000, 0)))
                os.ftruncate(fd, 20_000)
            seen.append((path.read_bytes(), read_direct(path)))
        return seen

    data_twins.same(cut)


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 511, 8191, 8192, 8193, 12_000, 30_000, 100_000])
@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_DSYNC, os.O_WRONLY | os.O_SYNC])
def test_parts_of_pages_are_overwritten_whatever_the_file_was_opened_for(
    data_twins: Twins, flags: int, offset: int
) -> None:
    """A part of a page can only be written by one who has read the page, even where the caller may not read."""

    def overwrite(directory: Path) -> object:
        seen: list[object] = []
        for length in (1, 15, 16, 17, 4096, 8192, 8193, 20_000):
            path = directory / str(length)
            path.write_bytes(pattern(25_001))
            forget(path)
            with opened(path, flags) as fd:
                os.pwrite(fd, b"#" * length, offset)
                if not flags & os.O_DSYNC:
                    os.fdatasync(fd)
            seen += [path.read_bytes(), read_direct(path)]
        return seen

    data_twins.same(overwrite)


def forget(path: Path) -> None:
    """Has the kernel drop what it has cached of the content."""
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_writes_beyond_the_end_leave_zeros_between(data_twins: Twins) -> None:
    def write(directory: Path) -> object:
        seen: list[object] = []
        for old in (0, 1, 16, 100, 8191, 8192, 8200):
            for offset in (8192, 8193, 10_000, 16_384, 50_000):
                path = directory / f"{old}-{offset}"
                path.write_bytes(pattern(old))
                with opened(path, os.O_WRONLY) as fd:
                    os.pwrite(fd, b"end", offset)
                seen += [path.read_bytes(), read_direct(path)]
        return seen

    data_twins.same(write)


OPENINGS: dict[str, Callable[[Path], object]] = {
    "O_RDONLY, written": lambda path: _with(path, os.O_RDONLY, lambda fd: os.write(fd, b"1")),
    "O_WRONLY, read": lambda path: _with(path, os.O_WRONLY, lambda fd: os.read(fd, 1)),
    "O_RDONLY, truncated": lambda path: _with(path, os.O_RDONLY, lambda fd: os.ftruncate(fd, 1)),
    "O_PATH, read": lambda path: _with(path, os.O_PATH, lambda fd: os.read(fd, 1)),
    "negative offset": lambda path: _with(path, os.O_RDWR, lambda fd: os.pwrite(fd, b"1", -1)),
    "seek before the start": lambda path: _with(path, os.O_RDWR, lambda fd: os.lseek(fd, -1, os.SEEK_SET)),
    "data behind the end": lambda path: _with(path, os.O_RDWR, lambda fd: os.lseek(fd, 10**6, os.SEEK_DATA)),
    "hole behind the end": lambda path: _with(path, os.O_RDWR, lambda fd: os.lseek(fd, 10**6, os.SEEK_HOLE)),
    "too long": lambda path: os.truncate(path, 1 << 60),
    "the longest": lambda path: os.truncate(path, (1 << 63) - 1),
}


def _with(path: Path, flags: int, action: Callable[[int], object]) -> object:
    with opened(path, flags) as fd:
        return action(fd)


@pytest.mark.parametrize("name", OPENINGS)
def test_what_a_descriptor_must_not_do_fails_as_on_plain_disk(twins: Twins, name: str) -> None:
    twins.each(lambda directory: (directory / "file").write_bytes(b"0123456789"))
    twins.same_error(lambda directory: OPENINGS[name](directory / "file"))
    assert (twins.mount / "file").read_bytes() == b"0123456789"


def test_open_with_truncation_empties_the_file_for_all_who_have_it_open(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(pattern(20_000))
        with opened(path, os.O_RDWR) as old:
            with opened(path, os.O_WRONLY | os.O_TRUNC) as new:
                seen: list[object] = [os.fstat(old).st_size, os.read(old, 10)]
                os.write(new, b"new")
            seen += [os.pread(old, 10, 0)]
            os.pwrite(old, b"old", 100)
        with opened(path, os.O_RDONLY | os.O_TRUNC):
            pass
        return [*seen, path.read_bytes()]

    data_twins.same(use)


def test_appending_ignores_the_position_and_follows_the_end(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(b"12345")
        with opened(path, os.O_WRONLY | os.O_APPEND) as one, opened(path, os.O_RDWR | os.O_APPEND) as two:
            os.lseek(one, 0, os.SEEK_SET)
            os.write(one, b"one")
            os.write(two, b"two")
            os.ftruncate(two, 6)
            os.write(one, b"one")
            position = os.lseek(one, 0, os.SEEK_CUR)
            # pwrite(2), BUGS: on Linux it appends, too
            os.pwrite(two, b"three", 0)
            return position, os.pread(two, 100, 0)

    data_twins.same(use)


@pytest.mark.parametrize("extra", [0, os.O_DSYNC, DIRECT], ids=["cached", "O_DSYNC", "O_DIRECT"])
def test_two_who_append_at_once_lose_nothing(data_twins: Twins, extra: int) -> None:
    records = 30 if extra else 300
    size = 4096 if extra & DIRECT else 100
    path = data_twins.mount / "file"
    script = (
        "import mmap, os, sys\n"
        "path, me, flags, records, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])\n"
        "fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, 0o600)\n"
        "buffer = mmap.mmap(-1, size)\n"
        "for number in range(records):\n"
        "    buffer[:] = f'{me}{number:07}'.encode().ljust(size, me.encode())\n"
        "    assert os.writev(fd, [buffer]) == size\n"
    )
    arguments = [str(extra), str(records), str(size)]
    children = [subprocess.Popen([sys.executable, "-c", script, path, me, *arguments]) for me in "abc"]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    written = path.read_bytes()
    pieces = [written[start : start + size] for start in range(0, len(written), size)]
    expected = [f"{me}{number:07}".encode().ljust(size, me.encode()) for me in "abc" for number in range(records)]
    assert sorted(pieces) == expected
    assert read_direct(path) == written


def test_direct_and_cached_io_see_one_file(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(pattern(40_000))
        with opened(path, os.O_RDWR) as cached, opened(path, os.O_RDWR | DIRECT) as direct:
            os.pwrite(cached, b"cached", 8190)
            os.pwritev(direct, [aligned(b"d" * 4096)], 4096)
            seen: list[object] = [os.pread(cached, 20_000, 0)]
            os.pwrite(cached, b"cached again", 4090)
            os.pwritev(direct, [aligned(b"e" * 8192)], 32_768)
            seen += [os.pread(cached, 50_000, 0), os.fstat(cached).st_size]
            buffer = aligned(bytes(49_152))
            got = os.preadv(direct, [buffer], 0)
            seen += [got, buffer[:got]]
            os.ftruncate(cached, 12_289)
            got = os.preadv(direct, [buffer], 8192)
            seen += [got, buffer[:got]]
        return [*seen, path.read_bytes()]

    data_twins.same(use)


@pytest.mark.parametrize("flags", [os.O_DSYNC, os.O_SYNC, os.O_DSYNC | DIRECT])
def test_synchronous_writes_are_in_the_backing_file_when_they_return(data_twins: Twins, flags: int) -> None:
    """Another descriptor of the mount cannot tell: a read past the cache through a link of the test's own can."""
    path = data_twins.mount / "file"
    with opened(path, os.O_RDWR | os.O_CREAT | flags) as fd:
        os.pwritev(fd, [aligned(pattern(8192))], 0)
        os.pwritev(fd, [aligned(pattern(8192, 1))], 8192)
        assert read_direct(path) == pattern(8192) + pattern(8192, 1)


GIB = 1 << 30


def test_sparse_files_beyond_1_gib(data_twins: Twins) -> None:
    places = (GIB - 1, GIB, GIB + 8191, 3 * GIB + 12_345, 5 * GIB)

    def use(directory: Path) -> object:
        path = directory / "16385"
        seen: list[object] = []
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            os.ftruncate(fd, 4 * GIB + 17)
            for place in places:
                os.pwrite(fd, b"at %d" % place, place)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for place in places:
                seen.append(os.pread(fd, 20_000, place - 10_000))
            seen.append(os.pread(fd, 100, 2 * GIB))
            seen.append(os.fstat(fd).st_size)
            os.ftruncate(fd, GIB + 3)
            os.ftruncate(fd, 2 * GIB)
            seen.append(os.pread(fd, 20_000, GIB - 10_000))
        assert path.stat().st_blocks * 512 < 1 << 20
        return seen

    data_twins.same(use)


def test_posix_fallocate_makes_room_that_reads_as_zeros(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(pattern(10_000))
        with opened(path, os.O_RDWR) as fd:
            os.posix_fallocate(fd, 0, 5000)
            seen: list[object] = [os.fstat(fd).st_size]
            os.posix_fallocate(fd, 8192, 100_001)
            seen.append(os.fstat(fd).st_size)
            os.posix_fallocate(fd, 1 << 20, 1)
        return [*seen, path.read_bytes(), read_direct(path)]

    data_twins.same(use)


def test_fallocate_works_or_says_that_it_does_not(data_twins: Twins) -> None:
    """Callers fall back on EOPNOTSUPP only; PostgreSQL 16 does so by way of posix_fallocate."""
    punch_hole, keep_size, zero_range, collapse = 2, 1, 16, 8
    path = data_twins.mount / "file"
    path.write_bytes(pattern(30_000))
    with opened(path, os.O_RDWR) as fd:
        for mode in (0, keep_size, punch_hole | keep_size, zero_range, collapse):
            try:
                fallocate(fd, mode, 8192, 8192)
            except OSError as error:
                assert error.errno == EOPNOTSUPP
                assert path.read_bytes() == pattern(30_000)


def test_copying_within_the_kernel(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        source, target = directory / "source", directory / "target"
        source.write_bytes(pattern(100_003))
        with opened(source, os.O_RDONLY) as reading, opened(target, os.O_RDWR | os.O_CREAT) as writing:
            copied = 0
            while got := os.copy_file_range(reading, writing, 50_000, copied, copied):
                copied += got
            seen: list[object] = [copied, target.read_bytes()]
            os.copy_file_range(reading, writing, 1000, 5, 90_001)
            sent = os.sendfile(writing, reading, 17, 70_000)
            seen += [sent, target.read_bytes()]
        shutil.copyfile(source, directory / "copied")
        subprocess.run(["cp", "--reflink=auto", source, directory / "cp"], check=True)
        subprocess.run(["dd", f"if={source}", f"of={directory / 'dd'}", "bs=3000", "status=none"], check=True)
        return [*seen, *((directory / name).read_bytes() for name in ("copied", "cp", "dd"))]

    data_twins.same(use)


def test_splice_to_a_pipe_and_back(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        (directory / "source").write_bytes(pattern(60_000))
        command = f"cat {directory}/source | tee {directory}/one | cat > {directory}/two"
        subprocess.run(["sh", "-c", command], check=True)
        reading, writing = os.pipe()
        with opened(directory / "source", os.O_RDONLY) as source, opened(directory / "three", 66) as target:
            moved = os.splice(source, writing, 10_000, offset_src=5)
            moved += os.splice(reading, target, 10_000, offset_dst=9)
        os.close(reading)
        os.close(writing)
        return moved, [(directory / name).read_bytes() for name in ("one", "two", "three")]

    data_twins.same(use)


def test_seeking_for_data_and_holes_loses_no_data(data_twins: Twins) -> None:
    """Holes may be reported as data, never data as holes."""
    path = data_twins.mount / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * 8192, 1 << 20)
        os.ftruncate(fd, 4 << 20)
        os.fsync(fd)
        assert os.lseek(fd, 1 << 20, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 0, os.SEEK_DATA) <= 1 << 20
        assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) >= (1 << 20) + 8192
        assert os.lseek(fd, 0, os.SEEK_END) == 4 << 20
    subprocess.run(["cp", "--sparse=always", path, data_twins.mount / "copy"], check=True)
    subprocess.run(["tar", "-C", data_twins.mount, "-cSf", data_twins.plain / "tar", "copy"], check=True)
    subprocess.run(["tar", "-C", data_twins.plain, "-xf", data_twins.plain / "tar"], check=True)
    assert (data_twins.plain / "copy").read_bytes() == path.read_bytes()


def test_vectors_and_positions(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            seen: list[object] = [os.writev(fd, [b"one", b"", b"two" * 3000]), os.lseek(fd, -4, os.SEEK_CUR)]
            buffers = [bytearray(2), bytearray(10)]
            seen += [os.readv(fd, buffers), buffers, os.pwritev(fd, [b"a", b"b" * 8192], 8190)]
            seen += [
                os.lseek(fd, 0, os.SEEK_CUR),
                os.lseek(fd, 5, os.SEEK_END),
                os.write(fd, b"end"),
                os.pread(fd, 1, 0),
            ]
        return [*seen, path.read_bytes()]

    data_twins.same(use)


def test_shared_maps_are_written_to_the_file_and_private_ones_are_not(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(pattern(30_001))
        with opened(path, os.O_RDWR) as fd:  # noqa: SIM117 - the map ends first
            with mmap.mmap(fd, 30_001) as shared, mmap.mmap(fd, 30_001, access=mmap.ACCESS_COPY) as private:
                shared[8190:8196] = b"shared"
                private[100:107] = b"private"
                seen: list[object] = [bytes(private[8190:8196]), os.pread(fd, 20_000, 0)]
                os.pwrite(fd, b"written", 16_380)
                seen.append(bytes(shared[16_380:16_390]))
                shared.flush()
                seen.append(read_direct(path))
                shared[0:5] = b"after"
                shared[29_999:30_001] = b"!!"
        return [*seen, path.read_bytes(), read_direct(path)]

    data_twins.same(use)


def test_a_map_outlives_its_descriptor_and_its_name(data_twins: Twins) -> None:
    def use(directory: Path) -> object:
        path, link = directory / "file", directory / "link"
        path.write_bytes(pattern(20_000))
        link.hardlink_to(path)
        with opened(path, os.O_RDWR) as fd:
            mapped = mmap.mmap(fd, 0)
        path.unlink()
        mapped[10:20] = b"x" * 10
        mapped.flush()
        mapped[8192:8200] = b"y" * 8
        mapped.close()
        return link.read_bytes(), read_direct(link)

    data_twins.same(use)


def test_a_map_beyond_the_end_is_a_bus_error(twins: Twins) -> None:
    def use(directory: Path) -> int:
        path = directory / "file"
        path.write_bytes(pattern(20_000))

        def touch() -> None:
            with opened(path, os.O_RDWR) as fd:
                mapped = mmap.mmap(fd, 20_000)
                os.ftruncate(fd, 5000)
                assert mapped[4096:5000] == pattern(20_000)[4096:5000]
                mapped[12_000:12_001]

        return end_of(touch)

    assert twins.same(use) == signal.SIGBUS


def test_a_write_only_descriptor_and_a_read_only_file(data_twins: Twins) -> None:
    """A file that may only be read can still be written by who has it open, and was it that made it so."""

    def use(directory: Path) -> object:
        path = directory / "file"
        with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400) as fd:
            os.write(fd, pattern(9000))
            os.pwrite(fd, b"inside", 100)
            os.fsync(fd)
        with opened(path, os.O_RDONLY) as fd:
            return os.read(fd, 10_000)

    data_twins.same(use)


def test_one_file_is_read_and_written_by_many_threads(data_twins: Twins) -> None:
    """Each owns every fourth page; nobody's page is ever seen with anything but one of its own images."""
    path = data_twins.mount / "file"
    pages, rounds, threads = 64, 20, 4
    path.write_bytes(b"".join(bytes([0, page]) * (PAGE // 2) for page in range(pages)))
    failures: list[str] = []

    def work(me: int) -> None:
        try:
            fd = os.open(path, os.O_RDWR)
            for turn in range(1, rounds + 1):
                for page in range(me, pages, threads):
                    os.pwrite(fd, bytes([turn, page]) * (PAGE // 2), page * PAGE)
                    other = (page * 7 + turn) % pages
                    image = os.pread(fd, PAGE, other * PAGE)
                    if image[1::2] != bytes([other]) * (PAGE // 2):
                        failures.append(f"page {other} holds something of page {image[1]}")
                if turn % 5 == 0:
                    os.fdatasync(fd)
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        except Exception as error:
            failures.append(repr(error))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert read_direct(path) == b"".join(bytes([rounds, page]) * (PAGE // 2) for page in range(pages))


def test_syncing_works_on_every_kind_of_descriptor(twins: Twins) -> None:
    def use(directory: Path) -> None:
        (directory / "sub").mkdir()
        with opened(directory / "file", os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"1")
            os.fsync(fd)
            os.fdatasync(fd)
        for path in (directory / "file", directory, directory / "sub"):
            with opened(path, os.O_RDONLY) as fd:
                os.fsync(fd)
                os.fdatasync(fd)
        os.sync()
        with opened(directory, os.O_RDONLY) as fd:
            (directory / "sub").rmdir()
            (directory / "file").unlink()
            os.fsync(fd)

    twins.same(use)


def test_a_reader_in_another_process_sees_each_write_at_once(data_twins: Twins) -> None:
    path = data_twins.mount / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        for number in range(20):
            os.pwrite(fd, b"%05d" % number, number * 5)
            assert in_child(path.read_bytes) == b"".join(b"%05d" % one for one in range(number + 1))
            assert in_child(lambda: path.stat().st_size) == number * 5 + 5

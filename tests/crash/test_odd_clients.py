"""Clients that do what programs rarely do, several at once: the mount answers as ext4 does, its daemon lives."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tdefs.format.links import MAX_TARGET_BYTES
from tests.crash.conftest import Dice
from tests.fs.libc import RENAME_EXCHANGE, fallocate, renameat2
from tests.fs.twins import Failure, Twins, identity, outcome
from tests.support.children import end_of
from tests.support.processes import wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

TIB = 1 << 40
OPEN_FILES = 5000
NOT_SUPPORTED = Failure.of(OSError(errno.EOPNOTSUPP, ""))
PATTERN = bytes(number * 31 % 251 for number in range(1 << 16))


@pytest.fixture(scope="module")
def served(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume where everything is encrypted."""
    volume = workspace.volume("odd")
    volume.init()
    volume.mount()
    yield volume
    volume.umount()
    workspace.volumes.remove(volume)


@pytest.fixture
def twins(workspace: Workspace, served: Volume) -> Iterator[Twins]:
    """A plain directory and one on the mount; afterwards the daemon lives, is content, and holds nothing."""
    plain = workspace.directory("plain")
    mount = served.mountpoint / plain.name
    mount.mkdir(mode=0o755)
    (daemon,) = served.daemons
    said = len(served.log.read_text())
    yield Twins(plain, mount)
    for directory in (plain, mount):
        subprocess.run(["rm", "-rf", str(directory)], check=True)
    assert served.daemons == [daemon], "the daemon is gone"
    log = served.log.read_text()[said:]
    assert "Traceback" not in log and " ERROR " not in log, log
    assert wait_until(lambda: served.status()["open_handles"] == 0, 10), "handles are left open"


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def attempt(action: Callable[[], object]) -> object:
    """What it returned, or the name of its error."""
    try:
        return action()
    except OSError as error:
        return Failure.of(error)


# Names


@pytest.mark.parametrize("length", [254, 255, 256])
def test_names_of_the_greatest_length_work_for_every_kind_of_node(twins: Twins, length: int) -> None:
    name = "\N{SNOWMAN}" * (length // 3) + "x" * (length % 3)

    def make(directory: Path) -> list[object]:
        seen = [
            attempt(lambda: (directory / name).write_bytes(b"file")),
            attempt(lambda: (directory / name).rename(directory / ("y" * length)) and None),
            attempt(lambda: os.link(directory / ("y" * length), directory / name)),
            attempt(lambda: (directory / ("d" * length)).mkdir()),
            attempt(lambda: (directory / ("s" * length)).symlink_to("t" * MAX_TARGET_BYTES)),
            attempt(lambda: os.mkfifo(directory / ("f" * length))),
            attempt(lambda: len((directory / ("s" * length)).readlink().name)),
        ]
        return [*seen, sorted(os.listdir(directory))]

    twins.same(make)


def test_directories_and_link_targets_of_any_bytes_are_kept(twins: Twins) -> None:
    odd = [b"\xff\xfe", b"two\nlines", b"\x1b[2J", b"\xc3(", b"a\\b"]

    def make(directory: Path) -> object:
        root = os.fsencode(directory) + b"/"
        for number, name in enumerate(odd):
            Path(os.fsdecode(root + name + b"/" + name)).mkdir(parents=True)
            os.symlink(name + b"/../" + odd[number - 1], root + b"link%d" % number)
            with open(b"/".join((root + name, name, name)), "wb") as file:  # noqa: PTH123
                file.write(name * 1000)
        found = [(path[len(root) :], sorted(below), sorted(files)) for path, below, files in os.walk(root)]
        links = [Path(directory, f"link{number}").readlink() for number in range(len(odd))]
        contents = [Path(os.fsdecode(b"/".join((root + name, name, name)))).read_bytes() for name in odd]
        return sorted(found), links, contents

    twins.same(make)


def test_depth_of_five_hundred_directories_by_one_path_and_beyond_by_steps(twins: Twins) -> None:
    def climb(directory: Path) -> object:
        path = directory.joinpath(*["d"] * 500)
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"deep")
        seen = [(path / "file").read_bytes(), len(list(directory.rglob("*")))]
        long = "n" * 250
        fd = os.open(path, os.O_RDONLY)
        for _ in range(20):
            os.mkdir(long, dir_fd=fd)
            below = os.open(long, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        with ExitStack() as stack:
            stack.callback(os.close, fd)
            file = os.open("file", os.O_CREAT | os.O_RDWR, 0o600, dir_fd=fd)
            stack.callback(os.close, file)
            os.write(file, b"beyond PATH_MAX")
            os.fsync(file)
            seen += [os.pread(file, 100, 0), os.listdir(fd)]
        return seen, attempt(lambda: path.joinpath(*[long] * 20).stat())

    twins.same(climb)


# Many


@pytest.mark.slow
def test_five_thousand_open_files_keep_what_was_written_and_are_let_go(twins: Twins, served: Volume) -> None:
    (daemon,) = served.daemons
    before = len(os.listdir(f"/proc/{daemon}/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    fds: list[int] = []
    try:
        for number in range(OPEN_FILES):
            fd = os.open(twins.mount / str(number), os.O_CREAT | os.O_RDWR, 0o600)
            fds.append(fd)
            os.write(fd, b"%06d" % number)
        for number in range(0, OPEN_FILES, 2):
            (twins.mount / str(number)).unlink()
        assert [os.pread(fd, 10, 0) for fd in fds] == [b"%06d" % number for number in range(OPEN_FILES)]
        assert served.status()["open_handles"] == OPEN_FILES
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    subprocess.run(["rm", "-rf", str(twins.mount)], check=True)
    twins.mount.mkdir()
    assert wait_until(lambda: len(os.listdir(f"/proc/{daemon}/fd")) <= before + 50, 20), (
        "descriptors are left open"
    )


@pytest.mark.slow
def test_large_directory_is_listed_whole_while_names_come_and_go(twins: Twins, dice: Dice) -> None:
    staying = {f"stays.{number}" for number in range(dice.rounds(4000))}
    for name in staying:
        os.mknod(twins.mount / name)
    child = os.fork()
    if child == 0:
        random = dice.random()
        try:
            while True:
                number = random.randrange(300)
                path = twins.mount / f"goes.{number}"
                if random.random() < 0.5:
                    path.touch()
                else:
                    path.unlink(missing_ok=True)
        finally:
            os._exit(0)
    try:
        for _ in range(4):
            seen = os.listdir(twins.mount)
            assert staying <= set(seen)
            assert len(seen) == len(set(seen)), "a name is listed twice"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# Files without names, files with new names


def test_unlinked_file_is_used_to_its_end_also_by_way_of_proc(twins: Twins) -> None:
    def use(directory: Path) -> list[object]:
        with opened(directory / "file", os.O_CREAT | os.O_RDWR) as fd:
            os.pwrite(fd, PATTERN, 0)
            (directory / "file").unlink()
            by_number = Path(f"/proc/self/fd/{fd}")
            seen: list[object] = [identity(os.fstat(fd)), identity(by_number.stat())]
            with opened(by_number, os.O_RDWR) as again:
                os.pwrite(again, b"again", 100)
                os.ftruncate(again, 50_001)
                os.fsync(again)
            seen.append(by_number.read_bytes())
            link = ["ln", "-L", str(by_number), str(directory / "back")]
            seen.append(attempt(lambda: os.link(by_number, directory / "back", follow_symlinks=True)))
            seen += [len(link), os.listdir(directory), os.pread(fd, 99_999, 0)]
        return seen

    twins.same(use)


def test_files_without_a_name_work_as_on_plain_disk_or_are_refused_as_fuse_refuses_them(twins: Twins) -> None:
    """Programs fall back on a name upon EOPNOTSUPP (open(2), O_TMPFILE)."""
    assert isinstance(
        outcome(lambda directory: os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR)), twins.plain), type(None)
    )
    got = outcome(lambda directory: os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR)), twins.mount)
    assert got in (None, NOT_SUPPORTED)


@pytest.mark.parametrize("flags", [0, RENAME_EXCHANGE])
def test_renames_over_open_files_leave_each_descriptor_its_file(twins: Twins, flags: int) -> None:
    def rename(directory: Path) -> object:
        one, two = directory / "one", directory / "two"
        one.write_bytes(PATTERN)
        two.write_bytes(PATTERN[::-1])
        with opened(one, os.O_RDWR) as first, opened(two, os.O_RDWR) as second:
            for number in range(20):
                if flags:
                    renameat2(one, two, flags)
                else:
                    one.rename(two)
                    one.write_bytes(b"new %d" % number)
                os.pwrite(first, b"first %d" % number, 5000 + number)
                os.pwrite(second, b"second %d" % number, 70_000 + number)
                os.fsync(second)
            contents = one.read_bytes(), two.read_bytes()
            return contents, os.pread(first, 99_999, 0), os.pread(second, 99_999, 0), os.fstat(second).st_nlink

    twins.same(rename)


def test_descriptors_of_paths_alone_lead_to_files(twins: Twins) -> None:
    def use(directory: Path) -> object:
        (directory / "file").write_bytes(b"content")
        with opened(directory / "file", os.O_PATH) as fd:
            seen = [attempt(lambda: os.read(fd, 5)), Path(f"/proc/self/fd/{fd}").read_bytes()]
            (directory / "file").rename(directory / "moved")
            return [*seen, Path(f"/proc/self/fd/{fd}").read_bytes(), identity(os.fstat(fd))]

    twins.same(use)


# Races


@pytest.mark.slow
@pytest.mark.parametrize("name", ["file", "base/5/16385"])
def test_truncates_writes_and_appends_at_once_leave_only_what_somebody_wrote(
    twins: Twins, dice: Dice, name: str
) -> None:
    """Each block of 512 bytes is one writer's record, or zeros: never a mixture with anything else."""
    path = twins.mount / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    children = []
    for worker in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _race(path, worker, dice)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    deadline = time.monotonic() + 300
    while any(os.waitpid(child, os.WNOHANG)[0] == 0 for child in list(children)):
        assert time.monotonic() < deadline
        # a read may meet a write half way, as on any disk, but sees nothing that nobody wrote
        assert set(path.read_bytes()) <= set(b"\0ABCD")
        children = [child for child in children if Path(f"/proc/{child}").exists()]
        if not children:
            break
    final = path.read_bytes()
    _check_records(final)
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        buffer = mmap.mmap(-1, max(4096, -(-len(final) // 4096) * 4096))
        assert os.preadv(fd, [buffer], 0) == len(final)
        assert buffer[: len(final)] == final, "past the cache the file is another one"


def _race(path: Path, worker: int, dice: Dice) -> None:
    random = dice.random(worker)
    record = bytes([65 + worker]) * 512
    with opened(path, os.O_RDWR | (os.O_APPEND if worker == 0 else 0)) as fd:
        for _ in range(300):
            match random.randrange(5):
                case 0 if worker == 3:
                    os.ftruncate(fd, random.randrange(64) * 512)
                case 1:
                    os.fdatasync(fd)
                case _:
                    count = random.randint(1, 6)
                    if worker == 0:
                        os.write(fd, record * count)
                    else:
                        os.pwrite(fd, record * count, random.randrange(64) * 512)


def _check_records(data: bytes) -> None:
    assert len(data) % 512 == 0, len(data)
    for start in range(0, len(data), 512):
        assert len(set(data[start : start + 512])) == 1, f"the record at {start} is of two writers"
        assert data[start] in b"\0ABCD"


def test_writers_of_memory_in_parent_and_child_see_each_other_and_private_ones_do_not(twins: Twins) -> None:
    def share(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(PATTERN)
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, len(PATTERN)) as shared:
            private = mmap.mmap(fd, len(PATTERN), access=mmap.ACCESS_COPY)
            private[0:7] = b"private"

            def child() -> None:
                shared[8192:8197] = b"child"
                private[0:5] = b"child"
                shared.flush()
                os.pwrite(fd, b"by write", 20_000)

            assert end_of(child) == 0
            seen = [shared[8192:8197], shared[20_000:20_008], private[0:7]]
            shared[30_000:30_006] = b"parent"
            shared.flush()
            os.ftruncate(fd, 60_000)
            private.close()
            return seen, path.read_bytes()

    twins.same(share)


@pytest.mark.parametrize("length", [1, 4096, 5000])
def test_memory_behind_the_end_is_a_bus_error_also_after_a_truncation(twins: Twins, length: int) -> None:
    def touch(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(PATTERN)
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, len(PATTERN)) as shared:
            os.ftruncate(fd, length)
            signals = [end_of(lambda place=place: shared[place]) for place in (0, length, 4095, 8191, 60_000)]  # type: ignore[misc]
            os.ftruncate(fd, 61_000)
            return signals, shared[:61_000]

    twins.same(touch)


# Requests of every shape


@pytest.mark.slow
def test_direct_io_of_any_alignment_does_what_the_kernel_lets_through(twins: Twins, dice: Dice) -> None:
    """ext4 refuses what is no multiple of a sector; FUSE passes it on, and then the bytes must be right."""
    path = twins.mount / "file"
    path.write_bytes(PATTERN * 4)
    model = bytearray(PATTERN * 4)
    memory = mmap.mmap(-1, 1 << 20)
    random = dice.random()
    offsets = [0, 1, 511, 512, 513, 4095, 4096, 8191, 8192, 100_000, len(model) - 5, len(model)]
    lengths = [1, 15, 16, 512, 4095, 4096, 8192, 10_000, 65_536, 200_000]
    done = 0
    with opened(path, os.O_RDWR | os.O_DIRECT) as direct, opened(path, os.O_RDWR) as cached:
        for _ in range(dice.rounds(300)):
            offset, length, shift = random.choice(offsets), random.choice(lengths), random.choice([0, 1, 16, 512])
            view = memoryview(memory)[shift : shift + length]
            try:
                if random.random() < 0.5:
                    memory[shift : shift + length] = random.randbytes(length)
                    written = os.pwritev(direct, [view], offset)
                    model[offset : offset + written] = view[:written]
                else:
                    got = os.preadv(direct, [view], offset)
                    assert view[:got] == model[offset : offset + length], f"{length} bytes at {offset}"
                done += 1
            except OSError as error:
                assert error.errno == errno.EINVAL
            if random.random() < 0.3:
                os.pwrite(cached, b"cached", offset)
                model[offset : offset + 6] = b"cached"
            assert os.fstat(cached).st_size == len(model)
        assert os.pread(cached, 1 << 20, 0) == model
    assert done > 50, "the kernel lets hardly anything through"


@pytest.mark.parametrize("size", [65_536, 1 << 20, 16 << 20])
@pytest.mark.parametrize("offset", [0, 1, 4097])
def test_single_writes_of_any_size_are_read_back_in_pieces_and_whole(twins: Twins, size: int, offset: int) -> None:
    def use(directory: Path) -> object:
        data = (PATTERN * (size // len(PATTERN) + 1))[:size]
        path = directory / "file"
        with opened(path, os.O_CREAT | os.O_RDWR) as fd:
            written = os.pwrite(fd, data, offset)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, size, offset) == data
            pieces = b"".join(os.pread(fd, 65_536, at) for at in range(offset, offset + size, 65_536))
            assert pieces == data
            return written, os.fstat(fd).st_size

    twins.same(use)


def test_sparse_file_of_a_tebibyte(twins: Twins) -> None:
    def use(directory: Path) -> object:
        path = directory / "file"
        began = time.monotonic()
        with opened(path, os.O_CREAT | os.O_RDWR) as fd:
            os.pwrite(fd, b"at the end", TIB)
            os.pwrite(fd, b"in the middle", TIB // 2 + 3)
            os.fsync(fd)
            seen: list[object] = [
                os.pread(fd, 30, TIB // 2),
                os.pread(fd, 100_000, TIB // 3),
                os.pread(fd, 99, TIB),
            ]
            seen.append(os.fstat(fd).st_size)
            assert os.fstat(fd).st_blocks * 512 < 1 << 20
            # SEEK_DATA may say less about holes than ext4, never that data is a hole
            assert os.lseek(fd, 0, os.SEEK_DATA) <= TIB // 2 + 3
            assert os.lseek(fd, TIB // 2 + 3, os.SEEK_DATA) == TIB // 2 + 3
            hole = attempt(lambda: fallocate(fd, 3, TIB // 2, 4096))  # punch a hole, keep the size
            assert hole in (None, NOT_SUPPORTED)
            os.ftruncate(fd, TIB // 2 + 5)
            os.ftruncate(fd, 2 * TIB)
            seen += [os.pread(fd, 10, 2 * TIB - 10), os.fstat(fd).st_size]
            if hole is not None:
                assert os.pread(fd, 20, TIB // 2) == b"\0\0\0in" + bytes(15)
            os.ftruncate(fd, 0)
            seen.append(os.fstat(fd).st_size)
        assert time.monotonic() - began < 20
        return seen

    twins.same(use)


def test_kernel_copies_are_what_was_copied(twins: Twins) -> None:
    def use(directory: Path) -> object:
        (directory / "source").write_bytes(PATTERN)
        with (
            opened(directory / "source", os.O_RDONLY) as source,
            opened(directory / "target", os.O_CREAT | os.O_RDWR) as target,
        ):
            seen: list[object] = []
            for offset, count, to in ((0, 10_000, 3), (12_345, 1, 0), (60_000, 99_999, 8191), (70_000, 5, 0)):
                seen.append(attempt(lambda o=offset, c=count, t=to: os.copy_file_range(source, target, c, o, t)))  # type: ignore[misc]
            os.lseek(target, 100_000, os.SEEK_SET)
            seen.append(os.sendfile(target, source, 777, 20_000))
            return seen, (directory / "target").read_bytes()

    twins.same(use)


@pytest.mark.parametrize("kind", [fcntl.F_RDLCK, fcntl.F_WRLCK])
def test_leases_are_given_and_refused_as_on_plain_disk_or_not_at_all(twins: Twins, kind: int) -> None:
    """FUSE has no leases with write-back caching on some kernels; nothing hangs then."""

    def lease(directory: Path) -> object:
        (directory / "file").touch()
        with opened(directory / "file", os.O_RDONLY) as fd:
            return fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)

    assert outcome(lease, twins.mount) in (outcome(lease, twins.plain), Failure("EINVAL"), Failure("EAGAIN"))


def test_flock_and_record_locks_hold_between_processes_and_end_with_them(twins: Twins) -> None:
    script = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+b')\n"
        "fcntl.flock(f, fcntl.LOCK_EX)\n"
        "fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )

    def use(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(PATTERN)
        child = subprocess.Popen(
            [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None and child.stdin is not None
        with opened(path, os.O_RDWR) as fd:
            assert child.stdout.readline() == b"locked\n"
            busy = fcntl.LOCK_EX | fcntl.LOCK_NB
            seen = [
                attempt(lambda: fcntl.flock(fd, busy)),
                attempt(lambda: fcntl.lockf(fd, busy, 5, 0)),
                attempt(lambda: fcntl.lockf(fd, busy, 5, 8)),
            ]
            child.kill()
            child.wait()
            child.stdout.close()
            child.stdin.close()
            seen += [attempt(lambda: fcntl.flock(fd, busy)), attempt(lambda: fcntl.lockf(fd, busy, 100, 0))]
        return seen

    twins.same(use)

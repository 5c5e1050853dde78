"""What the kernel still knows can be used after its name went, until it is forgotten; the answer never is ENOENT.

The operations are called in the order in which a race on a mount brings them: the kernel has found a name, another
process takes the name away, and then comes the request for what the kernel had found.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError

from tdefs.data.calls import Owner
from tdefs.fuse.operations import FuseOperations
from tdefs.policy.parse import load_policy
from tdefs.tree.renaming import RENAME_EXCHANGE
from tests.support.served_volume import ServedVolume

OLD, NEW = b"old content " * 2000, b"new"
FILE, OTHER = "base/5/16385", "base/5/16386"
#: A second name in a place of the same kind.
SECOND = {
    FILE: "base/5/16387",
    OTHER: "base/5/16388",
    "old.conf": "old2.conf",
    "new.conf": "new2.conf",
    "base/5/16390": "base/5/16391",
    "some.conf": "some2.conf",
}
CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=os.geteuid(), gid=os.getegid()))


class Kernel:
    """Asks the operations for inodes by number, as the kernel does."""

    def __init__(self, served: ServedVolume) -> None:
        self.served = served
        root_fd = served.places.directory_fd(served.inodes.root)
        self.operations = FuseOperations(served.files, root_fd)

    def ask(self, request: Coroutine[Any, Any, Any]) -> Any:
        """The answer; an errno is raised as OSError."""

        async def awaited() -> Any:
            return await request

        try:
            return trio.run(awaited)
        except FUSEError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None

    def number(self, path: str) -> int:
        """Looks a path up, and knows each part of it from then on."""
        number = int(pyfuse3.ROOT_INODE)
        for name in path.split("/"):
            number = self.ask(self.operations.lookup(cast(Any, number), cast(Any, name.encode()), CONTEXT)).st_ino
        return number

    def forget(self, number: int) -> None:
        """Forgets it, however often it was looked up."""
        lookups = self.served.inodes[number].lookups
        self.ask(self.operations.forget([(cast(Any, number), lookups)]))

    def open(self, number: int, flags: int = os.O_RDONLY) -> int:
        return int(self.ask(self.operations.open(cast(Any, number), cast(Any, flags), CONTEXT)).fh)

    def release(self, handle: int) -> None:
        self.ask(self.operations.release(cast(Any, handle)))

    def content(self, number: int, flags: int = os.O_RDONLY) -> bytes:
        """Opens, reads and closes."""
        handle = self.open(number, flags)
        try:
            return bytes(self.ask(self.operations.read(cast(Any, handle), 0, 1 << 20)))
        finally:
            self.release(handle)

    def attributes(self, number: int) -> EntryAttributes:
        return cast(EntryAttributes, self.ask(self.operations.getattr(cast(Any, number), CONTEXT)))

    def change(self, number: int, **changes: int) -> EntryAttributes:
        wanted = {"size", "mode", "uid", "gid", "atime", "mtime"}
        fields = SimpleNamespace(**{f"update_{name}": name in changes for name in wanted})
        values = SimpleNamespace(
            **{f"st_{name}_ns" if name.endswith("time") else f"st_{name}": changes.get(name) for name in wanted}
        )
        request = self.operations.setattr(cast(Any, number), cast(Any, values), cast(Any, fields), None, CONTEXT)
        return cast(EntryAttributes, self.ask(request))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedVolume]:
    """A volume where everything is encrypted but configuration, with some files and other nodes."""
    (tmp_path / "policy.yaml").write_text("version: 1\nkinds: {configuration: plain}\n")
    (tmp_path / "backing").mkdir()
    volume = ServedVolume(tmp_path / "backing", load_policy(tmp_path / "policy.yaml"))
    volume.mkdirs("base/5", "one", "two")
    for path, content in ((FILE, OLD), (OTHER, NEW), ("old.conf", OLD), ("new.conf", NEW)):
        volume.create(path, content)
    for path in ("one/link", "two/link"):
        volume.namespace.symlink(*volume.place(path), f"from {path}".encode(), Owner(os.geteuid(), os.getegid()))
    volume.remount()
    yield volume
    volume.close()


@pytest.fixture
def kernel(served: ServedVolume) -> Iterator[Kernel]:
    kernel = Kernel(served)
    before = descriptors()
    yield kernel
    served.calls.restart()
    kernel.operations.close()
    assert descriptors() <= before, "descriptors were left open"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def deleted() -> list[str]:
    """The files without a name that descriptors of this process lead to."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{entry}"))  # noqa: PTH115 - it need not lead to a path
        except FileNotFoundError:
            continue
    return [target for target in found if target.endswith(" (deleted)") and "backing" in target]


def exchanged_and_unlinked(served: ServedVolume, one: str, other: str) -> None:
    served.rename(one, other, RENAME_EXCHANGE)
    served.unlink(other)


def linked_over(served: ServedVolume, one: str, other: str) -> None:
    served.link(other, SECOND[other])
    served.rename(SECOND[other], one)


def unlinked_twice(served: ServedVolume, one: str, other: str) -> None:
    served.link(one, SECOND[one])
    served.unlink(one)
    served.unlink(SECOND[one])


#: How the name of the first file comes to lead to nothing, or to the second one.
GOING: dict[str, Callable[[ServedVolume, str, str], None]] = {
    "unlink": lambda served, one, _: served.unlink(one),
    "rename over it": lambda served, one, other: served.rename(other, one),
    "exchange": lambda served, one, other: served.rename(one, other, RENAME_EXCHANGE),
    "exchange and unlink": exchanged_and_unlinked,
    "link and rename over it": linked_over,
    "unlink of its second name": unlinked_twice,
}


def stays_open(kernel: Kernel, number: int) -> None:
    """Until the end of the test."""
    kernel.open(number)


def header_unread(kernel: Kernel, number: int) -> None:
    kernel.served.inodes[number].form = None


#: What else the daemon may have done with the file before.
STATES: dict[str, Callable[[Kernel, int], None]] = {
    "never opened": lambda kernel, number: None,
    "opened and closed": lambda kernel, number: kernel.release(kernel.open(number)),
    "open": stays_open,
    "header unread": header_unread,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("going", GOING)
@pytest.mark.parametrize("paths", [(FILE, OTHER), ("old.conf", "new.conf")], ids=["encrypted", "plain"])
def test_a_file_that_lost_its_name_after_it_was_found_can_be_used_as_on_plain_disk(
    kernel: Kernel, served: ServedVolume, paths: tuple[str, str], going: str, state: str
) -> None:
    number = kernel.number(paths[0])
    STATES[state](kernel, number)
    GOING[going](served, *paths)
    assert kernel.content(number) == OLD
    assert kernel.attributes(number).st_size == len(OLD)
    assert kernel.attributes(number).st_nlink == (1 if going == "exchange" else 0)
    handle = kernel.open(number, os.O_RDWR)
    kernel.ask(kernel.operations.write(cast(Any, handle), len(OLD), b"and more"))
    kernel.ask(kernel.operations.fsync(cast(Any, handle), False))
    kernel.release(handle)
    assert kernel.content(number) == OLD + b"and more"
    kernel.change(number, size=8193)
    kernel.change(number, mode=stat.S_IFREG | 0o440)
    kernel.change(number, atime=10**18, mtime=2 * 10**18)
    changed = kernel.change(number, uid=os.geteuid(), gid=os.getegid())
    for status in (changed, kernel.attributes(number)):
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (8193, 0o440)
        assert (status.st_atime_ns, status.st_mtime_ns) == (10**18, 2 * 10**18)
    assert kernel.content(number) == OLD[:8193]
    assert kernel.content(number, os.O_RDWR | os.O_TRUNC) == b""
    if "rename" in going or going == "exchange":
        assert served.read(paths[0]) == NEW


@pytest.mark.parametrize("state", ["never opened", "opened and closed"])
@pytest.mark.parametrize("going", [going for going in GOING if going != "exchange"])
def test_the_space_of_a_removed_file_is_free_when_the_kernel_forgets_it(
    kernel: Kernel, served: ServedVolume, going: str, state: str
) -> None:
    number = kernel.number(FILE)
    STATES[state](kernel, number)
    GOING[going](served, FILE, OTHER)
    kernel.content(number)
    assert len(deleted()) == 1
    known = len(served.inodes)
    kernel.forget(number)
    assert deleted() == []
    assert len(served.inodes) == known - 1


def test_what_the_kernel_does_not_know_is_not_held(kernel: Kernel, served: ServedVolume) -> None:
    served.read(FILE)
    served.unlink(FILE)
    served.rename("new.conf", "old.conf")
    assert deleted() == []


def test_a_failed_removal_holds_nothing(kernel: Kernel, served: ServedVolume) -> None:
    number = kernel.number(FILE)
    removals: dict[str, Callable[[], None]] = {
        "unlink": lambda: served.unlink(FILE),
        "rename": lambda: served.rename(OTHER, FILE),
    }
    for label, remove in removals.items():
        served.calls.fail = {label: errno.EIO}
        with pytest.raises(OSError, match="Input/output error"):
            remove()
    served.calls.fail = {}
    assert len(served.places.held) == 0
    assert kernel.content(number) == OLD


def test_a_directory_that_was_replaced_or_removed_can_be_opened_and_is_empty(
    kernel: Kernel, served: ServedVolume
) -> None:
    served.mkdirs("gone", "replaced", "new/inner")
    numbers = [kernel.number("gone"), kernel.number("replaced")]
    served.places.directory_fd(served.inodes[numbers[0]])
    served.namespace.rmdir(*served.place("gone"))
    served.rename("new", "replaced")
    for number in numbers:
        inode = served.inodes[number]
        handle = kernel.ask(kernel.operations.opendir(cast(Any, number), CONTEXT))
        assert served.namespace.names_in(inode) == []
        kernel.ask(kernel.operations.fsyncdir(handle, False))
        kernel.ask(kernel.operations.releasedir(handle))
        assert stat.S_ISDIR(kernel.attributes(number).st_mode)
        assert kernel.change(number, mode=stat.S_IFDIR | 0o711).st_mode == stat.S_IFDIR | 0o711
        with pytest.raises(OSError, match="No such file"):
            served.namespace.mkdir(inode, b"x", 0o700, Owner(os.geteuid(), os.getegid()))
        kernel.forget(number)
        assert inode not in served.places.held
    assert served.namespace.names_in(served.inode("replaced")) == [b"inner"]


def test_a_symbolic_link_that_was_replaced_or_removed_can_be_read(kernel: Kernel, served: ServedVolume) -> None:
    numbers = [kernel.number("one/link"), kernel.number("two/link")]
    served.rename("two/link", "one/link")
    served.unlink("one/link")
    for number, path in zip(numbers, ("one/link", "two/link"), strict=True):
        assert kernel.ask(kernel.operations.readlink(cast(Any, number), CONTEXT)) == f"from {path}".encode()
        assert kernel.change(number, uid=os.geteuid(), gid=os.getegid()).st_uid == os.geteuid()
        assert kernel.change(number, atime=1, mtime=2 * 10**9).st_mtime_ns == 2 * 10**9


def test_a_file_with_a_name_that_was_never_looked_up_is_reached_after_its_known_one_went(
    kernel: Kernel, served: ServedVolume
) -> None:
    """Links from before the mount, in the backing directory: the kernel does not forget such a file soon."""
    for name in ("a", "b", "c"):
        served.create(f"base/{name}", OLD)
        os.link(served.data / f"base/{name}", served.data / f"base/{name}-linked")
    served.remount()
    kernel = Kernel(served)
    numbers = {name: kernel.number(f"base/{name}") for name in ("a", "b", "c")}
    kernel.release(kernel.open(numbers["b"]))
    handle = kernel.open(numbers["c"])
    for name, number in numbers.items():
        served.unlink(f"base/{name}")
        assert kernel.content(number) == OLD
        assert kernel.attributes(number).st_nlink == 1
        assert kernel.number(f"base/{name}-linked") == number
        assert kernel.content(number) == OLD
        served.unlink(f"base/{name}-linked")
        assert kernel.content(number) == OLD
    kernel.release(handle)
    for number in numbers.values():
        kernel.forget(number)
    assert deleted() == []
    served.calls.restart()
    kernel.operations.close()


def test_a_file_whose_known_name_went_can_get_a_new_one_while_it_has_others(
    kernel: Kernel, served: ServedVolume
) -> None:
    os.link(served.data / FILE, served.data / "base/elsewhere")
    number = kernel.number(FILE)
    served.unlink(FILE)
    parent = kernel.number("base")
    entry = kernel.ask(kernel.operations.link(cast(Any, number), cast(Any, parent), cast(Any, b"new"), CONTEXT))
    assert (entry.st_ino, entry.st_nlink) == (number, 2)
    assert served.read("base/new") == OLD
    assert served.inodes[number] not in served.places.held


def test_the_kernel_looks_again_where_there_is_nothing_left(kernel: Kernel, served: ServedVolume) -> None:
    """ESTALE, also where no descriptor was to be had; ENOENT would be the answer to who opens a replaced file."""
    served.mkdirs("gone")
    file, link, directory = kernel.number(FILE), kernel.number("one/link"), kernel.number("gone")
    served.calls.fail = {"inodes:hold": errno.EMFILE}
    served.rename(OTHER, FILE)
    served.unlink("one/link")
    served.namespace.rmdir(*served.place("gone"))
    assert served.complaints.counts["removal (hold)"] == 3
    parent = cast(Any, kernel.number("base"))
    operations = kernel.operations
    requests: dict[str, Callable[[], object]] = {
        "open": lambda: kernel.open(file),
        "open to write": lambda: kernel.open(file, os.O_RDWR | os.O_TRUNC),
        "link": lambda: kernel.ask(operations.link(cast(Any, file), parent, cast(Any, b"new"), CONTEXT)),
        "truncate": lambda: kernel.change(file, size=0),
        "chmod": lambda: kernel.change(file, mode=0o600),
        "readlink": lambda: kernel.ask(operations.readlink(cast(Any, link), CONTEXT)),
        "opendir": lambda: kernel.ask(operations.opendir(cast(Any, directory), CONTEXT)),
        "lookup in it": lambda: kernel.ask(operations.lookup(cast(Any, directory), cast(Any, b"x"), CONTEXT)),
    }
    for name, request in requests.items():
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.ESTALE, name
    # the kernel has kept these; and the times of writes it passes on late, where an error would be syncfs(2)'s
    assert kernel.attributes(file).st_size == len(OLD)
    assert kernel.change(file, mtime=1).st_nlink == 0
    assert served.read(FILE) == NEW


@pytest.mark.parametrize(("request_", "path"), [("open", FILE), ("readlink", "one/link"), ("opendir", "two")])
def test_the_kernel_looks_again_where_somebody_removed_a_file_below(
    kernel: Kernel, served: ServedVolume, request_: str, path: str
) -> None:
    number = cast(Any, kernel.number(path))
    (served.data / path).rename(served.data / "aside")
    arguments = (number, os.O_RDONLY, CONTEXT) if request_ == "open" else (number, CONTEXT)
    with pytest.raises(OSError) as caught:
        kernel.ask(getattr(kernel.operations, request_)(*arguments))
    assert caught.value.errno == errno.ESTALE


def test_few_descriptors_are_held_and_they_are_given_up_for_who_opens(
    kernel: Kernel, served: ServedVolume
) -> None:
    numbers = []
    for number in range(600):
        served.create(f"base/n{number}", b"x")
        numbers.append(kernel.number(f"base/n{number}"))
        served.unlink(f"base/n{number}")
    assert len(deleted()) == len(served.places.held) == 512
    served.calls.fail = {"open:rw": errno.EMFILE}
    served.calls.spare = 0
    with pytest.raises(OSError, match="Too many open files"):
        kernel.content(numbers[-1])
    assert len(deleted()) == 1
    served.calls.fail = {}
    assert kernel.content(numbers[-1]) == b"x"
    with pytest.raises(OSError, match="Stale file handle"):
        kernel.content(numbers[0])
    for number in numbers:
        kernel.forget(number)
    assert deleted() == []


def test_a_file_that_was_never_read_is_what_the_policy_says_of_its_last_place(
    kernel: Kernel, served: ServedVolume
) -> None:
    """Empty files without a header: what is written to them later is encrypted where they lay, or not."""
    for path in ("base/5/16390", "some.conf"):
        (served.data / path).touch(0o600)
        os.link(served.data / path, served.data / SECOND[path])
        number = kernel.number(path)
        served.unlink(path)
        handle = kernel.open(number, os.O_RDWR)
        kernel.ask(kernel.operations.write(cast(Any, handle), 0, OLD))
        kernel.release(handle)
    assert OLD[:16] not in served.stored("base/5/16391")
    assert served.read("base/5/16391") == OLD
    assert served.stored("some2.conf") == OLD


def test_the_log_tells_a_removed_file_from_the_one_that_has_its_name_now(
    kernel: Kernel, served: ServedVolume, caplog: pytest.LogCaptureFixture
) -> None:
    number = kernel.number(FILE)
    served.rename(OTHER, FILE)
    served.calls.fail = {"open:stat": errno.EIO}
    with pytest.raises(OSError, match="Input/output error"):
        kernel.open(number)
    assert f"open of {FILE} (removed) failed" in caplog.text

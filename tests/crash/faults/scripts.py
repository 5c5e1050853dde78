"""Scripts of file operations that, between them, reach every call site of the file core."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES, EIO, EMFILE, ENOSPC
from pathlib import Path

import pytest

from tests.crash.faults.orders import Faults, Order
from tests.crash.faults.places import Place
from tests.support.children import NOBODY, in_child

PAGE = bytes(range(1, 256)) * 32 + b"\xff" * 32
READ_SECONDS = 0.1
ODD = PAGE + b"odd" * 1000 + b"!"

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
_RENAME_EXCHANGE = 2


def _nothing(place: Place, faults: Faults) -> None:
    pass


@dataclass(frozen=True)
class Script:
    """What is done while a call fails."""

    name: str
    act: Callable[[Place], None]
    #: Done before, while nothing fails.
    prepare: Callable[[Place, Faults], None] = _nothing
    #: Faults without which the calls are not reached that the script is for.
    enabling: tuple[Order, ...] = field(default=())
    #: What the script is for; empty: whatever it reaches that no other is for.
    labels: tuple[str, ...] = field(default=())
    #: Whether it can be done again in the same place after it has failed.
    again: bool = False
    #: The directory that it works below.
    directory: str = "base"
    #: Where nothing but relations is encrypted.
    plain: bool = False
    #: Where the manifest binds what was prepared.
    bound: bool = False


def _statx(path: Path) -> None:
    """Asks the daemon for attributes, whatever the kernel has cached."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _give_up_idle(place: Place, faults: Faults) -> None:
    """Has the daemon close the files that it keeps open for later."""
    with (
        faults.armed(Order(labels=("opendir",), errno=EMFILE)),
        pytest.raises(OSError, match="Too many open files"),
    ):
        os.listdir(place.path)


# --- files


def _create(place: Place) -> None:
    place.file("16385", ODD)


def _create_plain(place: Place) -> None:
    place.file("some.conf", ODD)


def _create_as_user(place: Place) -> None:
    place.expect("16385", b"")
    in_child(lambda: (place.path / "16385").touch(0o4755), uid=NOBODY)


def _open_to_all(place: Place, faults: Faults) -> None:
    place.path.chmod(0o777)


def _mkdir_as_user(place: Place) -> None:
    in_child(lambda: (place.path / "d").mkdir(), uid=NOBODY)


def _some_files(place: Place, faults: Faults) -> None:
    for name in ("16385", "16386", "note"):
        place.file(name, ODD)


def _change(place: Place) -> None:
    with place.opened("16385") as fd:
        place.write(fd, "16385", b"part" * 100, 4000)
        place.fsync(fd, "16385")
        place.write(fd, "16385", PAGE * 2, 8192)
        place.write(fd, "16385", b"beyond", 60000)
        os.fdatasync(fd)
        place.settled("16385")
    place.truncate("16385", 5001)
    place.truncate("16385", 9001)
    with place.opened("16385") as fd:
        place.write(fd, "16385", b"end", 9001)
        place.fsync(fd, "16385")


def _fill_again(place: Place) -> None:
    """Once by what extends the file at once, and once by what the kernel passes on."""
    place.truncate("16385", 0)
    place.truncate("16385", 100)
    place.truncate("16385", 0)
    with place.opened("16385") as fd:
        place.write(fd, "16385", PAGE)
        place.fsync(fd, "16385")


def _durable_writes(place: Place) -> None:
    with place.opened("16385", os.O_RDWR | os.O_DSYNC) as fd:
        place.write(fd, "16385", PAGE, 8192)
        place.settled("16385")
        place.write(fd, "16385", b"tail", 60000)
        place.settled("16385")


def _change_plain(place: Place) -> None:
    with place.opened("plain.conf") as fd:
        place.write(fd, "plain.conf", b"part" * 100, 0)
        place.write(fd, "plain.conf", b"more" * 4000, 11193)
        place.fsync(fd, "plain.conf")


def _a_plain_file(place: Place, faults: Faults) -> None:
    place.file("plain.conf", ODD)


def _wal(place: Place) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_DSYNC
    with place.opened("000000010000000000000001", flags) as fd:
        for number in range(3):
            place.write(fd, "000000010000000000000001", PAGE, 8192 * number)
            place.settled("000000010000000000000001")
    place.rename("000000010000000000000001", "000000010000000000000002")


def _copies_below(place: Place, faults: Faults) -> None:
    place.file("note", ODD)
    place.file("twin", ODD)
    place.copied_below("twin", "copy")
    place.unlink("twin")
    place.empty_below("empty")


def _read(place: Place) -> None:
    with place.opened("copy", os.O_RDONLY):
        place.read("copy")


def _open_empty(place: Place) -> None:
    place.file("empty", ODD)


def _write_to_zeros(place: Place) -> None:
    with place.opened("zeros") as fd:
        place.write(fd, "zeros", b"now", 1)
        place.fsync(fd, "zeros")


def _zeros_below(place: Place, faults: Faults) -> None:
    place.zeros_below("zeros", 30000)


def _open_twice(place: Place) -> None:
    """First for reading, where the disk below allows no more, then for writing."""
    place.read("copy")
    with place.opened("copy") as fd:
        place.write(fd, "copy", b"now", 1)
        place.fsync(fd, "copy")


def _a_copy_and_another(place: Place, faults: Faults) -> None:
    (place.path / "d").mkdir()
    place.file("twin", ODD)
    place.copied_below("twin", "copy")
    place.rename("twin", "d/original")
    place.forget("d/original")
    (place.data / "d/original").write_bytes(b"")


def _read_copy(place: Place) -> None:
    """The daemon has to look whether there is still another file with this file id."""
    place.read("copy")


def _large_file(place: Place, faults: Faults) -> None:
    place.file("note", PAGE * 64)


def _write_while_reading(place: Place) -> None:
    """A read that waits for the disk is overtaken by a write elsewhere in the file."""
    with place.opened("note") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        outcome: list[bytes | OSError] = []

        def read() -> None:
            try:
                # more than what is read on the daemon's event loop
                outcome.append(os.pread(fd, 12 * 8192, 0))
            except OSError as error:
                outcome.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        time.sleep(READ_SECONDS / 2)
        place.write(fd, "note", PAGE[::-1], 40 * 8192)
        place.fsync(fd, "note")
        reading.join()
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        assert outcome[0] == PAGE * 12


# --- names


def _rename(place: Place) -> None:
    place.rename("16385", "16399")
    place.rename("16386", "16399")
    place.read("16399")


def _rename_closed(place: Place, faults: Faults) -> None:
    _some_files(place, faults)
    _give_up_idle(place, faults)


def _exchange(place: Place) -> None:
    one, other = place.now("16385"), place.now("16386")
    place.expect("16385", other)
    place.expect("16386", one)
    paths = [os.fsencode(place.path / name) for name in ("16385", "16386")]
    if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _two_different(place: Place, faults: Faults) -> None:
    place.file("16385", ODD)
    place.file("16386", PAGE)


def _link_and_unlink(place: Place) -> None:
    place.expect("linked", None)
    place.expect("linked", place.now("note"))
    os.link(place.path / "note", place.path / "linked")
    place.path.joinpath("note").chmod(0o640)
    (place.path / "linked").unlink()


def _linked_below(place: Place, faults: Faults) -> None:
    """A closed file with two names."""
    place.file("note", ODD)
    place.link("note", "other")
    _give_up_idle(place, faults)


def _mode_of_linked(place: Place) -> None:
    (place.path / "note").chmod(0o640)
    place.read("other")


def _empty_with_two_names(place: Place, faults: Faults) -> None:
    """As the next mount leaves a file whose header a crash took away."""
    place.empty_below("16385")
    place.linked_below("16385", "16386")
    for name in ("16385", "16386"):
        (place.path / name).stat()


def _open_to_write(place: Place) -> None:
    with place.opened("16385"):
        pass


def _link_relation(place: Place) -> None:
    place.expect("backup", None)
    place.expect("backup", place.now("16385"))
    os.link(place.path / "16385", place.path / "backup")


def _unlink(place: Place) -> None:
    with place.opened("16385"):
        place.expect("16385", None)
        (place.path / "16385").unlink()
    place.expect("16386", None)
    (place.path / "16386").unlink()


def _replace_unopened(place: Place) -> None:
    place.rename("note", "copy")
    place.read("copy")


def _close_removed(place: Place) -> None:
    """A file with another name, which the daemon has not seen, loses the one that it has."""
    with place.opened("note"):
        place.expect("note", None)
        (place.path / "note").unlink()
    # served after the request that closes the file, for which close(2) does not wait
    os.statvfs(place.path)


def _linked_unseen(place: Place, faults: Faults) -> None:
    place.file("note", ODD)
    place.linked_below("note", "unseen")


def _nodes(place: Place) -> None:
    (place.path / "d" / "e").mkdir(parents=True)
    (place.path / "d" / "e" / "16385").touch()
    (place.path / "s").symlink_to("somewhere")
    assert (place.path / "s").readlink() == Path("somewhere")
    os.mkfifo(place.path / "fifo")
    os.mknod(place.path / "16390", stat.S_IFREG | 0o600)
    place.expect("16390", b"")
    (place.path / "d" / "e" / "16385").unlink()
    (place.path / "d" / "e").rmdir()
    (place.path / "d").rmdir()


def _an_owned_link(place: Place, faults: Faults) -> None:
    """Of another user than the daemon's, so that it has to be given away when it is made anew."""
    (place.path / "s").symlink_to("somewhere")
    os.chown(place.path / "s", 1234, 4321, follow_symlinks=False)


def _move_link(place: Place) -> None:
    """Wherever it is afterwards, it can be read."""
    try:
        (place.path / "s").rename(place.path / "moved")
    finally:
        (there,) = [name for name in os.listdir(place.path) if name in ("s", "moved")]
        link = place.path / there
        with suppress(OSError):  # not while reading fails
            assert link.readlink() == Path("somewhere")
        assert (link.lstat().st_uid, link.lstat().st_gid) == (1234, 4321)


def _make_fifo(place: Place) -> None:
    os.mkfifo(place.path / "fifo")


def _bound_nodes(place: Place, faults: Faults) -> None:
    _some_files(place, faults)
    _an_owned_link(place, faults)


def _change_bound(place: Place) -> None:
    """Each of these is noted in the journal of changed files before it is done."""
    place.truncate("16385", 100)
    place.rename("16386", "16399")
    (place.path / "s").unlink()
    place.unlink("note")


def _directory(place: Place) -> None:
    assert set(os.listdir(place.path)) == {"16385", "16386", "note"}
    fd = os.open(place.path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.statvfs(place.path)


def _list_unknown(place: Place) -> None:
    """What cannot be opened can be listed, and is right when it can be opened again."""
    assert {"note", "copy", "empty"} <= set(os.listdir(place.path))
    (place.path / "copy").stat()


# --- attributes


def _attributes(place: Place) -> None:
    for name in ("note", "copy"):
        with place.opened("note", os.O_RDONLY):
            _statx(place.path / name)
            (place.path / name).chmod(0o640)
            os.chown(place.path / name, NOBODY, NOBODY)
            os.utime(place.path / name, ns=(10**18, 10**18))


def _late_times(place: Place) -> None:
    """The kernel keeps the time of a write until a sync, if its clock has moved on since the last one."""
    with place.opened("16385") as fd:
        time.sleep(0.02)
        place.write(fd, "16385", PAGE)
        place.fsync(fd, "16385")


def _open_half_renamed(place: Place) -> None:
    place.read("16399")


def _half_renamed(place: Place, faults: Faults) -> None:
    """A header that still names the place before a rename, as after a crash."""
    place.file("16385", ODD)
    with faults.armed(Order(labels=("bind:header",), skip=1)):
        place.rename("16385", "16399")
    fd = os.open(place.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    _give_up_idle(place, faults)


_OF_ATTRIBUTES = (
    "getattr",
    "getattr:open",
    "setattr:chmod",
    "setattr:chown",
    "setattr:open",
    "setattr:stat",
    "setattr:times",
)
_OF_TWINS = ("twin:open", "twin:list", "twin:stat", "twin:read", "twin:close")
_CREATION_FAILS = (Order(labels=("create:header",)),)
_ADOPTION_FAILS = (Order(labels=("adopt:stat",)),)

SCRIPTS = (
    Script("create", _create, again=True),
    Script("create a plain file", _create_plain, again=True, directory="conf.d", plain=True),
    Script("create where plain files may be", _create, again=True, plain=True),
    Script("create as another user", _create_as_user, _open_to_all),
    Script("mkdir as another user", _mkdir_as_user, _open_to_all),
    Script("change", _change, _some_files, again=True),
    Script("change a plain file", _change_plain, _a_plain_file, directory="conf.d", plain=True),
    Script("fill what was emptied", _fill_again, _some_files),
    Script("durable writes", _durable_writes, _some_files),
    Script("WAL", _wal, directory="pg_wal"),
    Script("read", _read, _copies_below, again=True),
    Script("read what is not cached", _read, _copies_below, (Order(labels=("read:cached",)),), ("read",)),
    Script("fill an empty file", _open_empty, _copies_below, again=True),
    Script("read what may be a copy", _read_copy, _a_copy_and_another, labels=_OF_TWINS),
    Script("write to a plain file's zeros", _write_to_zeros, _zeros_below, again=True, plain=True),
    Script("rename", _rename, _some_files),
    Script("rename closed files", _rename, _rename_closed),
    Script("exchange", _exchange, _two_different),
    Script("link", _link_and_unlink, _some_files),
    Script("change the mode of a linked file", _mode_of_linked, _linked_below),
    Script("open an empty file with two names", _open_to_write, _empty_with_two_names, labels=("inodes:path",)),
    Script("link a relation", _link_relation, _some_files),
    Script("unlink", _unlink, _some_files),
    Script("replace what is not open", _replace_unopened, _copies_below, labels=("inodes:hold", "held:close")),
    Script("close what has no known name", _close_removed, _linked_unseen, labels=("close:hold",)),
    Script("other nodes", _nodes),
    Script("move a link", _move_link, _an_owned_link),
    Script(
        "undo a link that is made anew",
        _move_link,
        _an_owned_link,
        (Order(labels=("relink:rename",)),),
        ("relink:undo",),
    ),
    Script("undo a FIFO", _make_fifo, enabling=(Order(labels=("special:sync",)),), labels=("special:undo",)),
    Script(
        "change what is bound",
        _change_bound,
        _bound_nodes,
        labels=("journal:write", "journal:sync"),
        bound=True,
    ),
    Script(
        "change what is bound on a full disk",
        _change_bound,
        _bound_nodes,
        (Order(labels=("journal:write",), errno=ENOSPC),),
        ("journal:all",),
        bound=True,
    ),
    Script("directory", _directory, _some_files),
    Script("list unknown files", _list_unknown, _copies_below),
    Script("attributes", _attributes, _copies_below, labels=_OF_ATTRIBUTES),
    Script("pass on times", _late_times, _some_files, labels=("setattr:mtime",)),
    Script("open what is half renamed", _open_half_renamed, _half_renamed),
    Script(
        "read only, then write",
        _open_twice,
        _copies_below,
        (Order(labels=("open:rw",), errno=EACCES, times=1),),
        ("open:ro", "open:upgrade"),
    ),
    Script(
        "write to a file closed to its owner",
        lambda place: place.file("copy", ODD),
        _copies_below,
        (Order(labels=("open:rw",), errno=EACCES, times=2),),
        ("open:closed", "open:unlock", "open:relock"),
    ),
    Script(
        "write while a read waits",
        _write_while_reading,
        _large_file,
        (Order(labels=("read:cached",)), Order(labels=("read",), sleep=READ_SECONDS)),
        ("read:again",),
    ),
    Script("undo a creation", _create, enabling=_CREATION_FAILS, labels=("create:undo",), again=True),
    Script("undo a file's adoption", _create_as_user, _open_to_all, _ADOPTION_FAILS, ("adopt:undo",)),
    Script("undo a directory's adoption", _mkdir_as_user, _open_to_all, _ADOPTION_FAILS, ("adopt:undo",)),
    Script("undo an opening", _read, _copies_below, (Order(labels=("open:stat",), errno=EIO),), ("open:undo",)),
    Script("undo a link", _link_and_unlink, _some_files, (Order(labels=("link:stat",)),), ("link:undo",)),
    Script(
        "undo a plain write",
        _change_plain,
        _a_plain_file,
        (Order(labels=("file:write",)),),
        ("file:size",),
        directory="conf.d",
        plain=True,
    ),
    Script(
        "undo a write",
        _change,
        _some_files,
        (Order(labels=("file:write",), half=True),),
        ("file:truncate",),
    ),
)

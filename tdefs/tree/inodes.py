"""The inodes that the kernel knows of, and where each lies in the backing directory.

An inode's number is that of the backing file where this is possible, so that tools see what a plain directory
would show. A number lives as long as the kernel may use it; a backing file that got the number of an inode which
the kernel has not forgotten yet takes one from a range of its own.
"""

from __future__ import annotations

import logging
import os
import stat
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EIO, EISDIR, ELOOP, ENODEV, ENOENT, ENOTDIR, ENXIO, ESTALE
from typing import TYPE_CHECKING

from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import Told
from tdefs.data.descriptors import Descriptors
from tdefs.data.losses import Event, Losses
from tdefs.errors import errno_of
from tdefs.text import printable_path
from tdefs.tree.held import Held

if TYPE_CHECKING:
    from tdefs.data.data_file import DataFile
    from tdefs.data.forms import Form

log = logging.getLogger(__name__)

ROOT_NUMBER = 1
_FIRST_PRIVATE_NUMBER = 1 << 62
_DIRECTORY_FDS = 512
# what opening what was once a file, or a directory, ends with when something of another type lies there
_OF_ANOTHER_TYPE = frozenset({ELOOP, ENOTDIR, EISDIR, ENXIO, ENODEV})


class Exchanged(Told):
    """Below the mount, something else was put in the place of what the kernel knows."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """What was last known of a file without a name: attributes, plaintext length, links left, path."""

    status: os.stat_result
    length: int
    links: int
    path: bytes


class Inode:
    """One file, directory or other node."""

    __slots__ = (
        "bound",
        "bypassed",
        "exchanged",
        "form",
        "generation",
        "ghost",
        "handles",
        "key",
        "lookups",
        "losses",
        "names",
        "number",
        "open_file",
        "type",
    )

    def __init__(self, number: int, key: tuple[int, int], file_type: int, generation: int) -> None:
        self.number = number
        #: Tells it from other files that have, or had, the same number; 32 bits, since the kernel keeps no more.
        self.generation = generation
        #: Device and inode number in the backing directory.
        self.key = key
        #: The file type bits of the mode (``stat.S_IFMT``).
        self.type = file_type
        #: Where it lies: parent and name, several for hard links, none when it is unlinked.
        self.names: list[tuple[Inode, bytes]] = []
        #: How often the kernel looked it up and did not forget it.
        self.lookups = 0
        #: What the file says of itself, once it was read.
        self.form: Form | None = None
        self.open_file: DataFile | None = None
        #: Whether the manifest may bind it: until its length, header or name changes; see tdefs.manifest.bound.
        self.bound = True
        #: Of a directory: how many have it open.
        self.handles = 0
        #: Whether it was written past the kernel's cache, which may hold older bytes since.
        self.bypassed = False
        #: What every sync must report. Its open file shares it.
        self.losses = Losses()
        #: Set when no name is known any more, while the kernel still refers to it.
        self.ghost: Ghost | None = None
        #: Whether the log has said that something else lies in its place.
        self.exchanged = False

    @property
    def is_file(self) -> bool:
        """Tell whether this is a regular file."""
        return self.type == stat.S_IFREG

    @property
    def is_directory(self) -> bool:
        """Tell whether this is a directory."""
        return self.type == stat.S_IFDIR

    @property
    def is_link(self) -> bool:
        """Tell whether this is a symbolic link."""
        return self.type == stat.S_IFLNK

    @property
    def is_planted(self) -> bool:
        """Tell whether this is a FIFO, socket or device in the backing directory: tdefs stores these as files."""
        return not (self.is_file or self.is_directory or self.is_link)

    def path(self) -> bytes:
        """Return the path relative to the mount point, for the classifier; without a name, the last one."""
        parts: list[bytes] = []
        node = self
        while node.number != ROOT_NUMBER:
            if not node.names:
                parts.append(node.ghost.path if node.ghost is not None else b"(unlinked)")
                break
            node, name = node.names[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def shown(self) -> str:
        """Return the path for the log, where another file may be named by it since."""
        return printable_path(self.path() or b".") + (" (removed)" if self.ghost is not None else "")


def _stale() -> OSError:
    return OSError(ESTALE, os.strerror(ESTALE))


def _is_of(inode: Inode, status: os.stat_result) -> bool:
    """Tell whether what has *status* in the backing directory is *inode*."""
    return (status.st_dev, status.st_ino) == inode.key and stat.S_IFMT(status.st_mode) == inode.type


def path_of(parent: Inode, name: bytes) -> str:
    """Return the path of *name* in *parent* as text; bytes that are not UTF-8 become surrogates."""
    above = parent.path()
    return os.fsdecode(above + b"/" + name if above else name)


class NamesIn:
    """The names in one directory, for a sync of it that a program asked for."""

    def __init__(self, inodes: InodeTable, directory: Inode) -> None:
        self._inodes = inodes
        self._directory = directory
        self.losses = directory.losses

    def last_unsynced(self) -> int | None:
        """Return a number for the last name that came, and may not be on the disk."""
        return self._inodes.last_unsynced_name(self._directory)

    def synced(self, last: int | None) -> None:
        """Note that the directory was synced when *last* was its last name."""
        self._inodes.names_synced(self._directory, last)

    def lost(self, errno: int) -> None:
        """Note that the sync failed with *errno*, which the program that asked for it gets."""
        self._inodes.names_lost(self._directory, errno, told=True)


class InodeTable:
    """All known inodes of one mount. Nothing here awaits, so each call is atomic for the event loop."""

    def __init__(self, calls: SystemCalls, root_fd: int) -> None:
        self._calls = calls
        self.descriptors = Descriptors(calls)
        #: Of inodes without names.
        self.held = Held(self.descriptors)
        status = calls.fstat("inodes:root", root_fd)
        self.root = Inode(ROOT_NUMBER, (status.st_dev, status.st_ino), stat.S_IFDIR, 0)
        self.root.lookups = 1
        self.root.names.append((self.root, b"."))
        self._root_fd = root_fd
        self._by_number: dict[int, Inode] = {ROOT_NUMBER: self.root}
        self._by_key: dict[tuple[int, int], Inode] = {self.root.key: self.root}
        self._next_private = _FIRST_PRIVATE_NUMBER
        # not the same as in another mount, where the kernel's handles may be from
        self._next_generation = int.from_bytes(os.urandom(4), "little")
        self._directory_fds: OrderedDict[Inode, int] = OrderedDict()
        # Directories with names that may not be on the disk yet, by key, since the kernel may forget the inode in
        # between; and the number of the last name that came.
        self._unsynced: dict[tuple[int, int], int] = {}
        self._names_added = 0
        #: Losses of files that the kernel has forgotten, by key.
        self._lost: dict[tuple[int, int], Losses] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Inode]:
        """Every known inode, as of now."""
        return iter(list(self._by_number.values()))

    def __getitem__(self, number: int) -> Inode:
        try:
            return self._by_number[number]
        except KeyError:
            raise _stale() from None

    def with_key(self, key: tuple[int, int]) -> Inode | None:
        """Return the known inode of the backing file with that device and inode number."""
        return self._by_key.get(key)

    def enter(self, parent: Inode, name: bytes, status: os.stat_result) -> Inode:
        """Return the inode of *name* in *parent*, which has just been seen with *status*."""
        key = (status.st_dev, status.st_ino)
        inode = self._by_key.get(key)
        if inode is None:
            generation = self._generation(parent, name)
            inode = Inode(self._free_number(key), key, stat.S_IFMT(status.st_mode), generation)
            self._by_number[inode.number] = inode
            self._by_key[key] = inode
            inode.losses = self._lost.pop(key, inode.losses)
        if inode.ghost is not None:
            inode.ghost = None
            self.held.drop(inode)
        place = (parent, name)
        if place not in inode.names:
            if inode.is_directory:
                inode.names.clear()
            inode.names.append(place)
            if inode.open_file is not None and self.unsynced_above(inode):
                inode.open_file.names_durable = False
        return inode

    def hold(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Before a name goes: get what is needed to reach *inode* after it went, and until the kernel forgets it.

        An open file is reached through its own descriptor.

        :raises OSError: there is no descriptor to be had. The name may go all the same: the kernel gets ESTALE
            then, and looks the name up again.
        """
        if inode.lookups > 0 and inode.open_file is None:
            above = self.directory_fd(parent)
            self.held.keep(inode, self._open_in("inodes:hold", inode, name, os.O_PATH, above))

    def removed(self, inode: Inode, parent: Inode, name: bytes, *, last: bool) -> None:
        """Note that a name is gone. After the *last* one the backing inode number may be used again."""
        place = (parent, name)
        if place in inode.names:
            inode.names.remove(place)
        if last:
            inode.names.clear()
            self._by_key.pop(inode.key, None)
            self._unsynced.pop(inode.key, None)  # a directory that comes may get the number of one that goes
            self._close_directory(inode)
        self.drop_if_unused(inode)

    def moved(self, inode: Inode, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> None:
        """Note that a name became another one."""
        place = (parent, name)
        if place in inode.names:
            inode.names.remove(place)
        inode.names.append((new_parent, new_name))
        self.name_added(new_parent, inode)

    def rekey(self, inode: Inode, status: os.stat_result) -> None:
        """Note that another file in the backing directory, with *status*, has taken the place of *inode*'s.

        To the kernel it stays what it is, under its number.
        """
        key = (status.st_dev, status.st_ino)
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]
            self._by_key[key] = inode
        inode.key = key

    def name_added(self, parent: Inode, inode: Inode) -> None:
        """Note that a name of *inode* came into *parent*: a sync of what it leads to must make it durable, too."""
        self._names_added += 1
        self._unsynced[parent.key] = self._names_added
        if inode.open_file is not None:
            inode.open_file.names_durable = False
        elif inode.is_directory:
            for below in self._by_number.values():
                if below.open_file is not None and parent in self.unsynced_above(below):
                    below.open_file.names_durable = False

    def sync_names_above(self, inode: Inode) -> None:
        """Make the names durable that lead to *inode*, which is open, and note that they are.

        :raises OSError: a name may be lost.
        """
        for directory in self.unsynced_above(inode):
            self.sync_names(directory, "fsync:directory", "fsync:entry", told=True)
        if inode.open_file is not None:
            inode.open_file.names_durable = True

    def last_unsynced_name(self, directory: Inode) -> int | None:
        """Return a number for the last name that came into *directory* and may not be on the disk."""
        return self._unsynced.get(directory.key)

    def names_synced(self, directory: Inode, last: int | None) -> None:
        """Note that *directory* was synced when *last* was its last name: a later one may have missed it."""
        if self._unsynced.get(directory.key) == last:
            self._unsynced.pop(directory.key, None)

    def sync_names(self, directory: Inode, open_label: str, sync_label: str, *, told: bool) -> None:
        """Make the names in *directory* durable: all of them, so that the next new file in it needs no sync.

        :param told: whether an error is the answer to a sync that somebody asked for.
        """
        if told:
            directory.losses.report(Event.SYNC_OF_WRITE)
        last = self.last_unsynced_name(directory)
        above = self.directory_fd(directory)
        fd = self.descriptors.open_at(open_label, b".", os.O_RDONLY | os.O_DIRECTORY, 0, above)
        try:
            self._calls.fsync(sync_label, fd)
        except OSError as error:
            self.names_lost(directory, errno_of(error), told=told)
            raise
        finally:
            self.descriptors.let_go(open_label, fd)
        self.names_synced(directory, last)

    def names_lost(self, directory: Inode, errno: int, *, told: bool) -> None:
        """Note that a sync of *directory* failed: all who rely on a name in it must learn of it.

        :param told: whether somebody learns of it at once; then only who has something open now must, too.
        """
        for inode in self._by_number.values():
            file = inode.open_file
            if file is not None and file.handles > 0 and directory in self.unsynced_above(inode):
                inode.losses.failed(errno, Event.FAILED_ANSWERED)
        if directory.handles > 0 or not told:
            directory.losses.failed(errno, Event.FAILED_ANSWERED if told else Event.FAILED_UNNOTICED)

    def unsynced_above(self, inode: Inode) -> list[Inode]:
        """Return the directories above *inode* with names that may not be on the disk, the nearest first."""
        found: list[Inode] = []
        waiting = [parent for parent, _ in inode.names]
        while waiting and self._unsynced:
            directory = waiting.pop(0)
            if directory.key in self._unsynced and directory not in found:
                found.append(directory)
            if directory is not self.root:
                waiting += [parent for parent, _ in directory.names]
        return found

    def names_in(self, directory: Inode) -> NamesIn:
        """Return what a sync of *directory* needs to know of the names in it."""
        return NamesIn(self, directory)

    def is_entry_durable(self, inode: Inode) -> bool:
        """Tell whether the names of *inode* itself are known to be on the disk."""
        return all(parent.key not in self._unsynced for parent, _ in inode.names)

    def forget(self, number: int, lookups: int) -> None:
        """Take back *lookups*; at zero, and when nothing holds the file open, the inode is dropped."""
        inode = self._by_number.get(number)
        if inode is None or inode is self.root:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0:
            inode.losses.kernel_forgot()
        self.drop_if_unused(inode)

    def drop_if_unused(self, inode: Inode) -> None:
        """Drop *inode* when neither the kernel nor an open file refers to it."""
        if inode.lookups <= 0 and inode.open_file is None and inode is not self.root:
            self._by_number.pop(inode.number, None)
            if inode.losses and inode.names:
                self._lost[inode.key] = inode.losses
            if self._by_key.get(inode.key) is inode:
                del self._by_key[inode.key]
            self._close_directory(inode)
            self.held.drop(inode)

    def stand_in(self, path: bytes, status: os.stat_result | None) -> Inode:
        """Return an inode to be listed in place of a file that cannot be told anything of at the moment.

        It has a number that no file ever has, so what the kernel is told of it is never taken for the file's.

        :param status: its attributes in the backing directory, if at least these are known.
        """
        self._next_private += 1
        mode = stat.S_IFMT(status.st_mode) if status is not None else 0
        inode = Inode(self._next_private, (0, self._next_private), mode, self._new_generation())
        if status is not None:
            inode.ghost = Ghost(status, 0, status.st_nlink, path)
        self._by_number[inode.number] = inode
        return inode

    def place(self, inode: Inode) -> tuple[bytes, int]:
        """Return a name and the descriptor of its directory through which *inode* can be reached.

        Where it has no name any more, the name is empty, and the descriptor its own.

        :raises OSError: ESTALE when there is neither.
        """
        if len(inode.names) == 1:
            parent, name = inode.names[0]
            return name, self.directory_fd(parent)
        found = self._named_place(inode)
        if found is not None:
            return found
        fd = self.held.get(inode)
        if fd is None and inode.open_file is not None:
            fd = inode.open_file.fd
        if fd is None:
            raise _stale()
        return b"", fd

    def has_name(self, inode: Inode) -> bool:
        """Tell whether *inode*, of which a name has just gone, can be reached by another one.

        :raises OSError: that cannot be told.
        """
        return len(inode.names) == 1 or self._named_place(inode) is not None

    def _named_place(self, inode: Inode) -> tuple[bytes, int] | None:
        for parent, name in inode.names:
            # a name in a directory that the kernel forgot may have moved with it
            try:
                directory = self.directory_fd(parent)
                status = self._calls.stat("inodes:place", name, directory)
            except OSError as error:
                if error.errno not in (ENOENT, ESTALE) and not isinstance(error, Exchanged):
                    raise
                continue
            if _is_of(inode, status):
                return name, directory
        return None

    # --- the one way from an inode to what it is in the backing directory

    def open_inode(self, label: str, inode: Inode, flags: int) -> int:
        """Open what *inode* is in the backing directory, and nothing that lies in its place by now.

        :param flags: of open(2); none of them may change anything, since the check comes after.
        :raises OSError: EIO when something else lies there; the log names it. Upon ESTALE the kernel would look
            the name up again, and go on with what somebody has put there.
        """
        name, directory = self.place(inode)
        return self._open_in(label, inode, name, flags, directory)

    @contextmanager
    def reached(self, label: str, inode: Inode) -> Iterator[int]:
        """Give, for the time of a ``with`` block, an ``O_PATH`` descriptor of what *inode* is.

        :raises OSError: as :meth:`open_inode`.
        """
        fd = self.open_inode(label, inode, os.O_PATH)
        try:
            yield fd
        finally:
            self.descriptors.let_go(label, fd)

    @contextmanager
    def reached_new(self, label: str, parent: Inode, name: bytes, status: os.stat_result) -> Iterator[int]:
        """Give a descriptor as :meth:`reached`, of what was just made and has *status*.

        :raises OSError: EIO when something else lies there by now, or it was a hard link of something else.
        """
        made = Inode(0, (status.st_dev, status.st_ino), stat.S_IFMT(status.st_mode), 0)
        made.names.append((parent, name))
        if not made.is_directory and status.st_nlink != 1:
            raise self._exchanged(made)
        with self.reached(label, made) as fd:
            yield fd

    def check(self, inode: Inode, status: os.stat_result) -> None:
        """Check that what has *status* is *inode*: device, inode number and type.

        :raises OSError: EIO when it is something else; the log names it.
        """
        if not _is_of(inode, status):
            raise self._exchanged(inode)

    def _open_in(self, label: str, inode: Inode, name: bytes, flags: int, directory: int) -> int:
        """Open *name* in *directory* if it is *inode*; the name may be empty."""
        try:
            fd = self.descriptors.open_at(label, name, flags, 0, directory)
        except OSError as error:
            if error.errno in _OF_ANOTHER_TYPE:
                raise self._exchanged(inode) from None
            raise
        try:
            self.check(inode, self._calls.fstat("inodes:check", fd))
        except BaseException:
            with suppress(OSError):  # nothing was written through it
                os.close(fd)
            raise
        return fd

    def _exchanged(self, inode: Inode) -> Exchanged:
        if not inode.exchanged:
            inode.exchanged = True
            log.error(
                "%s: something else lies in its place in the backing directory since it was mounted; nothing is "
                "changed there (HINT: see who can write there; put back what lay there, or mount the volume anew)",
                inode.shown(),
            )
        return Exchanged(EIO, os.strerror(EIO))

    def paths(self, inode: Inode) -> list[str]:
        """Return the known paths of *inode*; of several, those that still lead to it, as in :meth:`place`.

        :raises OSError: where that cannot be told.
        """
        if len(inode.names) == 1:
            return [path_of(*inode.names[0])]
        found = {path_of(*place): None for place in list(inode.names) if self._leads_to(*place, inode)}
        return list(found)

    def _leads_to(self, parent: Inode, name: bytes, inode: Inode) -> bool:
        try:
            status = self._calls.stat("inodes:path", name, self.directory_fd(parent))
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, ESTALE) and not isinstance(error, Exchanged):
                raise
            return False
        return _is_of(inode, status)

    def directory_fd(self, inode: Inode) -> int:
        """Return an ``O_PATH`` descriptor of a directory; it stays valid for hundreds of further calls.

        :raises OSError: ESTALE when it cannot be found any more.
        """
        fd = self._known_directory_fd(inode)
        if fd is not None:
            return fd
        if not inode.is_directory:
            raise OSError(ENOTDIR, os.strerror(ENOTDIR))
        # from the nearest ancestor with a descriptor down, one component at a time, so that no path is too long
        chain = [inode]
        while True:
            if not chain[-1].names:
                raise _stale()
            above_fd = self._known_directory_fd(chain[-1].names[0][0])
            if above_fd is not None:
                break
            chain.append(chain[-1].names[0][0])
        opened: int | None = None
        for node in reversed(chain):
            _, name = node.names[0]
            try:
                fd = self._open_in("inodes:directory", node, name, os.O_PATH | os.O_DIRECTORY, above_fd)
            except FileNotFoundError:
                raise _stale() from None
            finally:
                if opened is not None:
                    self.descriptors.let_go("inodes:directory", opened)
            opened = above_fd = fd
        self._directory_fds[inode] = above_fd
        if len(self._directory_fds) > _DIRECTORY_FDS:
            _, oldest = self._directory_fds.popitem(last=False)
            self.descriptors.let_go("inodes:directory", oldest)
        return above_fd

    def _known_directory_fd(self, inode: Inode) -> int | None:
        if inode is self.root:
            return self._root_fd
        fd = self._directory_fds.get(inode)
        if fd is not None:
            self._directory_fds.move_to_end(inode)
        elif not inode.names:
            fd = self.held.get(inode)
        return fd

    def close(self) -> None:
        """Close every cached descriptor."""
        self.held.close()
        while self._directory_fds:
            _, fd = self._directory_fds.popitem()
            self.descriptors.let_go("inodes:close", fd)

    def _close_directory(self, inode: Inode) -> None:
        fd = self._directory_fds.pop(inode, None)
        if fd is not None:
            self.descriptors.let_go("inodes:directory", fd)

    def _generation(self, parent: Inode, name: bytes) -> int:
        """Return what tells a file from those that have its number before or after it.

        The handle that the file system below gives out for it holds a generation, which changes when the number
        is used again. CRC-32 finds every change within 32 bits, so files with one number get different checksums.
        Where there are no handles, a generation is new each time the kernel gets to know a file.
        """
        try:
            return zlib.crc32(self._calls.handle("inodes:handle", name, self.directory_fd(parent)))
        except OSError:
            return self._new_generation()

    def _new_generation(self) -> int:
        self._next_generation = (self._next_generation + 1) % (1 << 32)
        return self._next_generation

    def _free_number(self, key: tuple[int, int]) -> int:
        device, number = key
        if (
            device == self.root.key[0]
            and ROOT_NUMBER < number < _FIRST_PRIVATE_NUMBER
            and number not in self._by_number
        ):
            return number
        self._next_private += 1
        return self._next_private

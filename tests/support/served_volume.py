"""The file core on a backing directory without a kernel: its methods called as the FUSE operations call them."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.complaints import Complaints
from tdefs.data.data_file import DataFile
from tdefs.data.forms import Expectations, FileForms
from tdefs.data.staging import Staging
from tdefs.format.header import Binding, Identity
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, KeyRing
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.model import Policy
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode
from tdefs.tree.namespace import Namespace
from tdefs.tree.tree import Tree

VOLUME_ID = bytes(range(0xA0, 0xB0))
DK_1 = DataKey("dk_1", 1, AES_256_XTS, bytes(range(32)))
DK_2 = DataKey("dk_2", 1, AES_256_XTS, bytes(range(32, 64)))
RING = KeyRing(VOLUME_ID, "dk_1", [DK_1, DK_2])


def read_all(file: DataFile) -> bytes:
    """The whole content of an open file."""
    ranges = file.content.ranges(0, file.length)
    stored = [os.pread(file.fd, count, at) for at, count in ranges]
    return bytes(file.content.decode(0, file.length, stored)) if stored else b""


class Crash(BaseException):
    """The process has died: nothing that it would still have done happens."""


class ScriptedCalls(SystemCalls):
    """The real system calls, of which a test picks one that fails, or before which the process dies.

    ``made`` lists the labels of all calls so far. ``fail`` maps a label to the errno that its calls give, after as
    many as ``spare`` says have succeeded. ``crash_before`` is the number of the call, counted from 0, that is not
    made any more, nor any after it.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fail: dict[str, int] = {}
        self.spare = 0
        self.crash_before: int | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not callable(found) or name in ("restart",):
            return found
        return functools.partial(self._call, found)

    def _call(self, real: Callable[..., Any], label: str, *arguments: Any) -> Any:
        if self.crash_before is not None and len(self.made) >= self.crash_before:
            raise Crash
        self.made.append(label)
        if label in self.fail:
            self.spare -= 1
        if label in self.fail and self.spare < 0:
            raise OSError(self.fail[label], os.strerror(self.fail[label]))
        return real(label, *arguments)

    def restart(self) -> None:
        """Forget everything, as a new process has."""
        self.made.clear()
        self.fail.clear()
        self.spare = 0
        self.crash_before = None


class Answers:
    """What a stored file would answer where its first bytes do not say what it is."""

    def __init__(
        self, *, encrypts: bool = True, zeros: bool = True, plain: bool = False, length: int | None = None
    ) -> None:
        self._encrypts, self._zeros, self._plain, self._length = encrypts, zeros, plain, length

    def should_be_encrypted(self) -> bool:
        return self._encrypts

    def is_marked_plain(self) -> bool:
        return self._plain

    def interrupted_length(self) -> int | None:
        return self._length

    def is_all_zero(self) -> bool:
        return self._zeros

    def had_header(self) -> bool:
        return False


class ServedVolume:
    """A backing directory that is being served; :meth:`remount` serves it anew, as a new daemon would."""

    def __init__(self, data: Path, policy: Policy | None = None) -> None:
        self.data = data
        self.calls = ScriptedCalls()
        self.policy = policy or Policy.everything()
        #: For ever, as a volume remembers it.
        self.plain_files = False
        self._staging: Staging | None = None
        self._root_fd = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.remount()

    def remount(self, *, after_crash: bool = False, policy: Policy | None = None, ring: KeyRing = RING) -> None:
        self.calls.restart()
        self.policy = policy or self.policy
        self.plain_files |= self.policy.leaves_anything_plain()
        expected = Expectations(ring.volume_id, plain_files=self.plain_files, lost_headers=after_crash)
        self.forms = FileForms(ring, expected)
        self.make_parts()
        if self._staging is not None:
            self._staging.close()
        # as a daemon does at its start, so it is no call that a test counts
        self._staging = Staging(self.data.with_name(f"{self.data.name}.staging"))
        self.namespace = Namespace(self.files, self._staging)

    def make_parts(self, manifest: Bound | None = None) -> None:
        """What serves the volume, as a session makes it."""
        self.complaints = Complaints()
        self.tree = Tree(self.calls, self._root_fd)
        self.inodes = self.tree.inodes
        self.places = self.tree.places
        self.files = Files(self.tree, self.forms, PolicyInUse(self.policy), self.complaints, manifest)
        self.opener = self.files.opener

    def close(self) -> None:
        self.calls.restart()
        self.tree.close()
        os.close(self._root_fd)
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    # --- by path, as a program sees it

    def inode(self, path: str) -> Inode:
        """The inode at a path; the root's is that of the empty path."""
        node = self.inodes.root
        for name in filter(None, path.split("/")):
            node, _ = self.namespace.lookup(node, name.encode())
        return node

    def place(self, path: str) -> tuple[Inode, bytes]:
        """The inode of the directory, and the name in it."""
        above, _, name = path.rpartition("/")
        return self.inode(above), name.encode()

    def mkdirs(self, *paths: str) -> None:
        for path in paths:
            (self.data / path).mkdir(parents=True, exist_ok=True)

    def create(self, path: str, data: bytes = b"") -> None:
        """Make a file, write to it and close it."""
        owner = Owner(os.geteuid(), os.getegid())
        inode, file = self.namespace.create(*self.place(path), stat.S_IFREG | 0o600, owner)
        try:
            file.write(0, data)
        finally:
            self.opener.close_if_unused(inode)

    def write(self, path: str, offset: int, data: bytes) -> None:
        inode = self.inode(path)
        file = self.opener.open(inode, writable=True)
        try:
            file.write(offset, data)
        finally:
            self.opener.close_if_unused(inode)

    def read(self, path: str) -> bytes:
        """The whole content; EIO for a file that cannot be presented."""
        inode = self.inode(path)
        file = self.opener.open(inode, writable=False)
        try:
            return read_all(file)
        finally:
            self.opener.close_if_unused(inode)

    def length(self, path: str) -> int:
        """What stat(2) would show."""
        inode = self.inode(path)
        return self.opener.length(inode, (self.data / path).stat())

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self.namespace.rename(*self.place(old), *self.place(new), flags)

    def link(self, old: str, new: str) -> None:
        self.namespace.link(self.inode(old), *self.place(new))

    def unlink(self, path: str) -> None:
        self.namespace.unlink(*self.place(path))

    def bound(self, path: str) -> tuple[Identity, ...]:
        return self.files.identities.bound(self.inode(path))

    def stored(self, path: str) -> bytes:
        """The bytes in the backing directory."""
        return (self.data / path).read_bytes()


def relation(relfilenode: int, *, database: int = 16384, fork: int = 0, segment: int = 0) -> Identity:
    return Identity(Binding.RELATION, database, relfilenode, fork, segment)

"""Making files, encrypted or plain as the policy says; and deciding about files that are neither yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EPERM

from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.complaints import Complaints
from tdefs.data.data_file import DataFile
from tdefs.data.forms import Empty, Encrypted, FileForms, Form, Plain
from tdefs.data.identity import identity_at
from tdefs.data.zeros import mark_plain, mark_zeros, remove_mark
from tdefs.format.header import Header
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.special import Special
from tdefs.format.suites import suite_of
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.paths import classify
from tdefs.text import printable_path
from tdefs.tree.contents import Contents
from tdefs.tree.file_ids import SharedFileIds
from tdefs.tree.identities import NEVER_SPECIAL, Identities
from tdefs.tree.inode import Inode, path_of
from tdefs.tree.tree import Tree


class Creator:
    """Makes the files of one mount."""

    def __init__(
        self,
        tree: Tree,
        forms: FileForms,
        policy: PolicyInUse,
        manifest: Bound,
        shared_ids: SharedFileIds,
        identities: Identities,
        contents: Contents,
        complaints: Complaints,
    ) -> None:
        self._calls: SystemCalls = tree.calls
        self._inodes = tree.inodes
        self._places = tree.places
        self._unsynced_names = tree.unsynced_names
        self._forms = forms
        self._policy = policy
        self._manifest = manifest
        self._shared_ids = shared_ids
        self._identities = identities
        self._contents = contents
        self._complaints = complaints

    def create(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, DataFile]:
        """Make a new file, encrypted or plain as the policy says, and open it.

        :raises OSError: the file was not made.
        """
        path = path_of(parent, name)
        directory = self._places.directory_fd(parent)
        self._manifest.will_come(parent, name)
        fd = self._places.descriptors.create_at("create:open", name, os.O_RDWR, mode, directory, owner)
        inode: Inode | None = None
        try:
            status = self._calls.fstat("create:stat", fd)
            inode = self._inodes.enter(parent, name, status)
            decision = self._policy.decide(path)
            form: Form = Plain()
            size = 0
            if decision.encrypted:
                form = Encrypted(self._forms.new_header(decision.key_name, identity_at(path)), unused=True)
                self._write_new_header(path, fd, form.header)
                size = HEADER_SIZE
            else:
                mark_plain(self._calls, "create:mark", fd)
            content = self._contents.content(inode, fd, form, size, can_write=True)
        except BaseException:
            self._places.descriptors.let_go("create:undo", fd)
            self._undo(path, lambda: self._calls.unlink("create:undo", name, directory))
            if inode is not None:
                self._inodes.removed(inode, parent, name, last=True)
            raise
        inode.form = form
        self._shared_ids.note(inode)
        self._unsynced_names.added(parent, inode)
        return inode, self._contents.open_file(inode, fd, content, status, writable=True)

    def create_special(self, parent: Inode, name: bytes, mode: int, owner: Owner, special: Special) -> None:
        """Make the file that stands for a FIFO, socket or device, and sync it, since no program can do so later.

        :raises OSError: the file was not made.
        """
        path = path_of(parent, name)
        if classify(path).kind in NEVER_SPECIAL:
            raise OSError(EPERM, os.strerror(EPERM))
        directory = self._places.directory_fd(parent)
        fd = self._places.descriptors.create_at("special:open", name, os.O_RDWR, mode, directory, owner)
        try:
            header = self._forms.new_header(self._policy.decide(path).key_name, special.identity)
            self._write_new_header(path, fd, header)
            self._calls.fdatasync("special:sync", fd)
        except BaseException:
            self._undo(path, lambda: self._calls.unlink("special:undo", name, directory))
            raise
        finally:
            self._places.descriptors.let_go("special:close", fd)

    def settle(self, inode: Inode, fd: int, empty: Empty) -> Form:
        """Decide about a file that is neither encrypted nor plain as if it were created now.

        :raises OSError: nothing has changed.
        """
        path = os.fsdecode(inode.path())
        decision = self._policy.decide(path)
        form: Form = Plain()
        self._manifest.will_change(inode)
        inode.form = None  # until it is known what has become of the file
        if decision.encrypted:
            header = self._forms.new_header(decision.key_name, self._identities.under_all_names(inode))
            form = Encrypted(header, unused=not empty.length)
            if empty.length:
                # a crash leaves zeros of another size, which must not become the length
                mark_zeros(self._calls, "settle:mark", fd, empty.length)
            self._write_new_header(path, fd, form.header, empty.length)
            if empty.length:
                self._remove_mark(path, fd)
        else:
            self._calls.ftruncate("create:size", fd, empty.length)
            mark_plain(self._calls, "create:mark", fd)
        inode.form = form
        self._shared_ids.note(inode)
        return form

    def _remove_mark(self, path: str, fd: int) -> None:
        try:
            remove_mark(self._calls, "settle:unmark", fd)
        except OSError as error:
            # a file with a header is encrypted, whatever the mark says
            self._complaints.failed("open", printable_path(os.fsencode(path)), error)

    def _write_new_header(self, path: str, fd: int, header: Header, length: int = 0) -> None:
        """Write the header of a file of *length* zeros.

        The size comes first: a file shorter than its header counts as damaged. In a volume with plain files the
        header is synced: a header that a crash took away would look like the zeros of a plain file.
        """
        self._calls.ftruncate("create:size", fd, suite_of(header.suite).stored_size(length))
        try:
            self._calls.pwrite("create:header", fd, self._forms.encode(header), 0)
            if self._forms.plain_files:
                self._calls.fdatasync("create:sync", fd)
        except OSError:
            self._undo(path, lambda: self._empty(fd, length))
            raise

    def _empty(self, fd: int, length: int) -> None:
        """Make a file all zero again, of its old size."""
        self._calls.ftruncate("create:undo", fd, 0)
        self._calls.ftruncate("create:undo", fd, length)

    def _undo(self, path: str, work: Callable[[], None]) -> None:
        self._complaints.undo("create", printable_path(os.fsencode(path)), work)

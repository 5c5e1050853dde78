"""Opening files, once for each inode, and keeping them open for a while after the last program has closed them."""

from __future__ import annotations

import os
from collections import OrderedDict
from errno import EACCES, EPERM, EROFS

from tdefs.data.complaints import Complaints
from tdefs.data.data_file import DataFile
from tdefs.data.forms import Broken, Empty, Encrypted, FileForms, Plain
from tdefs.data.losses import Event
from tdefs.errors import errno_of
from tdefs.format.errors import DamagedLength
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suites import DEFAULT_SUITE, suite_of
from tdefs.keys.hierarchy import KeyRing
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.model import Policy
from tdefs.tree.contents import Contents
from tdefs.tree.creating import Creator
from tdefs.tree.headers import Headers
from tdefs.tree.identities import Identities
from tdefs.tree.inode import Inode, LastKnown
from tdefs.tree.refusals import refuse_planted
from tdefs.tree.tree import Tree

_IDLE_FILES = 512
# so many at once when there are too many open files
_IDLE_FILES_GIVEN_UP = 32


class Opener:
    """Opens the files of one mount."""

    def __init__(
        self,
        tree: Tree,
        forms: FileForms,
        policy: PolicyInUse,
        manifest: Bound,
        headers: Headers,
        identities: Identities,
        contents: Contents,
        creator: Creator,
        complaints: Complaints,
    ) -> None:
        self._calls = tree.calls
        self._inodes = tree.inodes
        self._places = tree.places
        self._forms = forms
        self._policy = policy
        self._manifest = manifest
        self._headers = headers
        self._identities = identities
        self._contents = contents
        self._creator = creator
        self._complaints = complaints
        #: Inodes whose files are open without handles, the least recently used first.
        self._idle: OrderedDict[Inode, None] = OrderedDict()
        tree.places.descriptors.give_up = self._close_some_idle

    # --- opening

    def open(self, inode: Inode, *, writable: bool) -> DataFile:
        """Return the open file of *inode*, opened now if it is not.

        :raises OSError: EIO or ENOKEY for a file that cannot be presented; the log says why.
        """
        file = inode.open_file
        if file is not None:
            if writable:
                self.make_writable(inode, file)
            else:
                self._check_open(inode)
            self._idle.pop(inode, None)
            return file
        self._manifest.check(inode)
        refuse_planted(self._places, inode)
        fd, can_write = self._open_backing(inode, writable=writable)
        try:
            form = self._headers.read(inode, fd)
            self._manifest.check(inode)
            if isinstance(form, Empty) and writable:
                form = self._creator.settle(inode, fd, form)
            status = self._calls.fstat("open:stat", fd)
            content = self._contents.content(inode, fd, form, status.st_size, can_write=can_write)
        except BaseException:
            self._places.descriptors.let_go("open:undo", fd)
            raise
        # a file that is neither plain nor encrypted is settled when it is first opened for writing
        can_write = can_write and not isinstance(form, Empty)
        return self._contents.open_file(inode, fd, content, status, writable=can_write)

    def make_writable(self, inode: Inode, file: DataFile) -> None:
        """Make *file*, the open file of *inode*, writable, after the checks of an opening.

        :raises OSError: the file is open as before.
        """
        self._check_open(inode)
        if not file.writable:
            self._exchange_descriptor(inode, file)

    def _check_open(self, inode: Inode) -> None:
        """Check again what may have changed below since the file of *inode* was opened.

        :raises OSError: EIO; the log says why.
        """
        self._manifest.check(inode)
        refuse_planted(self._places, inode)
        self._identities.check_open(inode)

    def _exchange_descriptor(self, inode: Inode, file: DataFile) -> None:
        """Replace a read-only descriptor by one that can write, under the same number, and settle the file."""
        fd = self._headers.open_closed("open:rw", inode, os.O_RDWR)
        with file.changed_alone():
            try:
                os.dup2(fd, file.fd, inheritable=False)
            finally:
                self._places.descriptors.let_go("open:upgrade", fd)
            if inode.form is None or isinstance(inode.form, Empty):
                form = self._headers.read(inode, file.fd)
                if isinstance(form, Empty):
                    form = self._creator.settle(inode, file.fd, form)
                size = self._calls.fstat("open:stat", file.fd).st_size
                file.exchange(self._contents.content(inode, file.fd, form, size, can_write=True))
            file.writable = True

    def _open_backing(self, inode: Inode, *, writable: bool) -> tuple[int, bool]:
        """Open for reading and writing: with write-back caching the kernel reads from files opened write-only."""
        try:
            return self._places.open_inode("open:rw", inode, os.O_RDWR), True
        except OSError as error:
            if error.errno not in (EACCES, EPERM, EROFS) or (writable and error.errno != EACCES):
                raise
        if writable:
            return self._headers.open_closed("open:rw", inode, os.O_RDWR), True
        return self._headers.open_closed("open:ro", inode, os.O_RDONLY), False

    def length(self, inode: Inode, status: os.stat_result) -> int:
        """Return the plaintext length of a regular file whose backing file has *status*.

        :raises OSError: it cannot be found out now. The kernel would remember a wrong answer.
        """
        if inode.open_file is not None:
            return inode.open_file.length
        if inode.last_known is not None:
            return inode.last_known.length
        if status.st_size == 0:
            return 0
        form = self._headers.form(inode)
        if isinstance(form, Plain):
            return status.st_size
        try:
            if isinstance(form, Empty):
                return form.length
            suite = suite_of(form.header.suite) if isinstance(form, Encrypted) else DEFAULT_SUITE
            return suite.plaintext_length(status.st_size)
        except DamagedLength:
            # the file cannot be opened, but it must be possible to list its directory
            return max(0, status.st_size - HEADER_SIZE)

    # --- what is open, but not used

    def close_if_unused(self, inode: Inode) -> None:
        """Put a file without handles aside: for each connection PostgreSQL opens the same ones again."""
        if inode.open_file is None or inode.handles > 0:
            return
        if not inode.names or inode.lookups <= 0:
            self._close(inode, inode.open_file)
            return
        self._idle[inode] = None
        self._idle.move_to_end(inode)
        if len(self._idle) > _IDLE_FILES:
            self._close_idle_file(self._idle.popitem(last=False)[0])

    def close_idle(self, inode: Inode) -> None:
        """Close the file of *inode* if it is only put aside; if it has no name, its descriptor is held."""
        if inode in self._idle:
            del self._idle[inode]
            self._close_idle_file(inode)

    def close_all_idle(self) -> None:
        """Close everything that is put aside."""
        while self._idle:
            self._close_idle_file(self._idle.popitem()[0])

    def _close_some_idle(self) -> bool:
        """Close some files that were put aside longest ago, then some held descriptors; return whether any was."""
        closed = 0
        while self._idle and closed < _IDLE_FILES_GIVEN_UP:
            self._close_idle_file(self._idle.popitem(last=False)[0])
            closed += 1
        return closed > 0 or self._places.held.give_up()

    def _close_idle_file(self, inode: Inode) -> None:
        assert inode.open_file is not None  # noqa: S101 - what is put aside is open
        self._close(inode, inode.open_file)

    def _close(self, inode: Inode, file: DataFile) -> None:
        """Close. No program asked for it, so the next program that syncs gets the error."""
        path = inode.shown()
        inode.open_file = None
        if not inode.names and inode.lookups > 0:
            links = self._note_last_status(inode, file)
            if inode not in self._places.held:
                if links == 0:
                    # nothing can be lost, so no program needs the error of close(2)
                    self._places.held.keep(inode, file.fd)
                    return
                self._hold_linked(inode, file)
        try:
            self._calls.close("file:close", file.fd)
        except OSError as error:
            # a network file system may write at close(2)
            self._complaints.failed("close", path, error)
            inode.losses.failed(errno_of(error), Event.FAILED_UNNOTICED)
        self._inodes.drop_if_unused(inode)

    def _note_last_status(self, inode: Inode, file: DataFile) -> int:
        """Note what the kernel may still ask about a file without a name; return how many links it has left."""
        try:
            file.status = self._calls.fstat("file:last", file.fd)
        except OSError as error:
            self._complaints.failed("close", inode.shown(), error)
        inode.lost_last_name(LastKnown(file.status, file.length, file.status.st_nlink, inode.path()))
        return file.status.st_nlink

    def _hold_linked(self, inode: Inode, file: DataFile) -> None:
        """Hold an ``O_PATH`` descriptor of a file whose other names are not known, before its own is closed."""
        try:
            fd = self._places.descriptors.open_at("close:hold", b"", os.O_PATH, 0, file.fd)
        except OSError as error:
            self._complaints.failed("close (hold)", inode.shown(), error)
        else:
            self._places.held.keep(inode, fd)

    # --- other keys, another policy

    def use_ring(self, ring: KeyRing) -> None:
        """Use other keys from now on. Programs can go on reading the files that they have open."""
        self._forms.use_ring(ring)
        self.close_all_idle()
        for inode in self._inodes:
            if inode.open_file is None and isinstance(inode.form, Encrypted | Broken):
                inode.form = None

    def use_policy(self, policy: Policy) -> None:
        """Decide by another policy from now on. A file that programs have open stays as it is.

        Whether a file that starts with zeros is plain depends on the policy, so it is found out again.
        """
        self._policy.use(policy)
        self.close_all_idle()
        for inode in self._inodes:
            if inode.open_file is None and isinstance(inode.form, Plain | Empty | Broken):
                inode.form = None

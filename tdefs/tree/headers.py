"""The forms of files: read once for each inode; and writing the headers of encrypted files."""

from __future__ import annotations

import os
import stat

from tdefs.data.calls import SystemCalls
from tdefs.data.forms import Encrypted, FileForms, Form, Plain
from tdefs.data.losses import Event
from tdefs.data.zeros import StoredDoubts
from tdefs.errors import errno_of
from tdefs.format.header import RECORD_SIZE, Header
from tdefs.format.layout import HEADER_SIZE
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.tree.file_ids import SharedFileIds
from tdefs.tree.inode import Inode
from tdefs.tree.places import Places


class Headers:
    """The headers of one mount's files."""

    def __init__(
        self,
        calls: SystemCalls,
        places: Places,
        forms: FileForms,
        policy: PolicyInUse,
        manifest: Bound,
        shared_ids: SharedFileIds,
    ) -> None:
        self._calls = calls
        self._places = places
        self._forms = forms
        self._policy = policy
        self._manifest = manifest
        self._shared_ids = shared_ids

    def form(self, inode: Inode) -> Form:
        """Return the form of the file.

        :raises OSError: it cannot be read.
        """
        if inode.form is not None:
            return inode.form
        fd = self.open_closed("form:open", inode, os.O_RDONLY)
        try:
            return self.read(inode, fd)
        finally:
            self._places.descriptors.let_go("form:close", fd)

    def read(self, inode: Inode, fd: int) -> Form:
        """Return the form of the open file, read now if it is not known; log what differs from the manifest."""
        if inode.form is None:
            size = self._calls.fstat("form:stat", fd).st_size
            page = self._calls.pread("form:read", fd, RECORD_SIZE, 0)
            if not any(page):
                page = self._calls.pread("form:read", fd, HEADER_SIZE, 0)
            self._manifest.check_header(inode, page, size)
            path = os.fsdecode(inode.path())
            doubts = StoredDoubts(
                self._calls,
                fd,
                size,
                lambda: self._policy.encrypts(path),
                lambda: self._manifest.had_header(inode),
            )
            inode.form = self._forms.recognise(page, size, doubts)
            if isinstance(inode.form, Plain) and self._policy.encrypts(path):
                self._manifest.check_plain(inode)
            self._shared_ids.note(inode)
        return inode.form

    def write_header(self, label: str, fd: int, header: Header) -> None:
        """Write a header over the old one.

        :raises OSError: the write failed.
        """
        self._calls.pwrite(label, fd, self._forms.encode(header), 0)

    def sync_header(self, label: str, inode: Inode, fd: int) -> None:
        """Make a header durable.

        :raises OSError: it may be lost.
        """
        try:
            self._calls.fdatasync(label, fd)
        except OSError as error:
            # the error may be about data, and no program that synced has got it
            inode.losses.failed(errno_of(error), Event.FAILED_UNNOTICED)
            raise

    def replace(self, inode: Inode, header: Header) -> None:
        """Write another header for the same content and key, and make it durable.

        :raises OSError: the old header may still be there.
        """
        # not through an open content: a header can be replaced even if the content is damaged
        file = inode.open_file
        own = file is None or not file.writable
        fd = self.open_closed("bind:open", inode, os.O_RDWR) if file is None or own else file.fd
        try:
            self.write_header("bind:header", fd, header)
            self.sync_header("bind:sync", inode, fd)
        finally:
            if own:
                self._places.descriptors.let_go("bind:close", fd)
        form = inode.form
        unused = isinstance(form, Encrypted) and form.unused
        inode.form = Encrypted(header, unused=unused)

    def open_closed(self, label: str, inode: Inode, flags: int) -> int:
        """Open a file of the daemon's user, even if its mode does not allow that to its owner.

        The kernel has checked the caller's rights. Whatever the mode is, the daemon must read the header, and the
        rest of a page that is written in part.
        """
        try:
            return self._places.open_inode(label, inode, flags)
        except PermissionError as error:
            refused = error
        with self._places.reached("open:closed", inode) as fd:
            status = self._calls.stat("open:closed", b"", fd)
            if status.st_uid != os.geteuid():
                raise refused
            mode = stat.S_IMODE(status.st_mode)
            self._calls.chmod("open:unlock", fd, mode | stat.S_IRUSR | stat.S_IWUSR)
            try:
                return self._places.descriptors.open_at(label, b"", flags, 0, fd)
            finally:
                self._calls.chmod("open:relock", fd, mode)

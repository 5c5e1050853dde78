"""Making the content of an open backing file from its form, after the last checks."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from errno import EPERM
from functools import partial

from tdefs.data.backing_store import BackingStore
from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.forms import Broken, Empty, Encrypted, FileForms, Form
from tdefs.format.content import Content, FileState
from tdefs.format.errors import FormatError
from tdefs.format.plain import PlainContent
from tdefs.format.suites import suite_of
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.paths import Kind, classify
from tdefs.tree.file_ids import SharedFileIds
from tdefs.tree.headers import Headers
from tdefs.tree.identities import Identities
from tdefs.tree.inode import Inode
from tdefs.tree.places import Places
from tdefs.tree.refusals import refusal
from tdefs.tree.unsynced_names import UnsyncedNames

log = logging.getLogger(__name__)


class Contents:
    """Makes the contents, and the open files, of one mount."""

    def __init__(
        self,
        calls: SystemCalls,
        places: Places,
        unsynced_names: UnsyncedNames,
        forms: FileForms,
        headers: Headers,
        identities: Identities,
        policy: PolicyInUse,
        shared_ids: SharedFileIds,
    ) -> None:
        self._calls = calls
        self._places = places
        self._unsynced_names = unsynced_names
        self._forms = forms
        self._headers = headers
        self._identities = identities
        self._policy = policy
        self._shared_ids = shared_ids

    def content(self, inode: Inode, fd: int, form: Form, size: int, *, can_write: bool) -> Content:
        """Return the content of an open backing file of *size* stored bytes, after the last checks.

        :raises OSError: EIO or ENOKEY for a file that cannot be presented; the log says why.
        """
        store = BackingStore(self._calls, fd)
        try:
            if isinstance(form, Broken):
                raise form.error
            if isinstance(form, Empty):
                # it cannot be written to; if the header is lost, nothing after it is content
                size = form.length
            if isinstance(form, Encrypted):
                self._identities.check_at_all_names(inode, form.header)
                if can_write:
                    self._identities.end_rename(inode, form.header, fd)
                self._shared_ids.note(inode)
                self._identities.check_file_id_is_unique(inode)
                state = FileState(suite_of(form.header.suite).plaintext_length(size))
                return self._forms.content(form.header, store, state, partial(self._use_new_file_id, inode, fd))
            return PlainContent(store, FileState(size), partial(self._refuse_header, inode))
        except FormatError as error:
            raise refusal(self._places, inode, error) from error

    def open_file(
        self, inode: Inode, fd: int, content: Content, status: os.stat_result, *, writable: bool
    ) -> DataFile:
        """Return the open file of *inode*, made of *fd* and *content*."""
        inode.open_file = DataFile(
            fd,
            content,
            status,
            inode.losses,
            partial(self._unsynced_names.sync_above, inode),
            writable=writable,
            names_durable=not self._unsynced_names.above(inode),
        )
        return inode.open_file

    def _use_new_file_id(self, inode: Inode, fd: int) -> bytes | None:
        """Before an open empty file gets its first byte: give it a file id that was never used.

        The old content of the file, in this session or an earlier one, was encrypted under its old id; and a copy
        of its header gives that id to another file. The truncation is durable before the new header is written,
        and the header before the content. So at whatever moment this stops, a reader finds the old header with
        the old content or without content, or the new header without content.

        :returns: the file key of the new file id; ``None`` if the file's own id was never used.
        :raises OSError: the file is empty, and can be written to when there is no error any more.
        """
        form = inode.form
        assert isinstance(form, Encrypted)  # noqa: S101 - an open file's form stays what it is
        if form.unused:
            inode.form = replace(form, unused=False)
            return None
        path = os.fsdecode(inode.path())
        header = self._forms.renewed(form.header, self._policy.decide(path).key_name)
        # PostgreSQL removes temporary files when it starts, and nobody finds one without a name
        is_left = inode.last_known is None or inode.last_known.links > 0
        lasting = is_left and classify(path).kind is not Kind.TEMP
        if lasting:
            self._headers.sync_header("begin:truncated", inode, fd)
        self._headers.write_header("begin:header", fd, header)
        self._shared_ids.forget(inode)
        inode.form = Encrypted(header)
        self._shared_ids.note(inode)
        if lasting:
            self._headers.sync_header("begin:sync", inode, fd)
        return self._forms.file_key(header)

    def _refuse_header(self, inode: Inode, head: bytes) -> None:
        """Refuse to write a plain file that would be taken for a damaged encrypted one.

        :raises OSError: EPERM.
        """
        if self._forms.resembles_encrypted(head):
            log.error(
                "%s: a file stored in the clear may not start like an encrypted one "
                "(HINT: put it in a place that the policy encrypts)",
                inode.shown(),
            )
            raise OSError(EPERM, os.strerror(EPERM))

"""Opening, creating and binding files: where inodes, headers, policy and descriptors meet."""

from __future__ import annotations

import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from errno import EACCES, EPERM, EROFS, EXDEV
from functools import partial

from tdefs.data.backing_store import BackingStore
from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.complaints import Complaints, Told
from tdefs.data.data_file import DataFile
from tdefs.data.forms import Broken, Empty, Encrypted, FileForms, Form, Plain, check_identity, identity_at
from tdefs.data.losses import Event
from tdefs.data.zeros import StoredDoubts, mark_plain, mark_zeros, remove_mark
from tdefs.errors import errno_of
from tdefs.format.content import Content
from tdefs.format.errors import DamagedLength, FormatError, PlantedNode, SharedFileId
from tdefs.format.header import ANY_PLACE, RECORD_SIZE, Header, Identity
from tdefs.format.layout import HEADER_SIZE, plaintext_length, stored_size
from tdefs.format.pages import PageCipher
from tdefs.format.plain import PlainContent
from tdefs.format.special import PLANTED_NODE, Special, special_of
from tdefs.format.stored import StoredFile
from tdefs.keys.hierarchy import KeyRing
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.model import Decision, Policy
from tdefs.policy.paths import Kind, classify
from tdefs.text import printable_path
from tdefs.tree.file_ids import Twins
from tdefs.tree.inodes import Ghost, Inode, InodeTable, path_of

log = logging.getLogger(__name__)

#: A FIFO in the place of such a file would be waited for; each can be told by its name from what may be one.
_NEVER_SPECIAL = frozenset(
    {
        *(Kind.RELATION, Kind.CATALOG, Kind.RELATION_MAP, Kind.CONTROL, Kind.VERSION, Kind.CONFIGURATION),
        *(Kind.WAL, Kind.SLRU, Kind.TWO_PHASE, Kind.SIGNAL, Kind.BACKUP, Kind.REPLICATION, Kind.STATISTICS),
    }
)
_IDLE_FILES = 512
# so many at once when there are too many open files
_IDLE_FILES_GIVEN_UP = 32


class Opener:
    """Opens the files of one mount, once for each inode."""

    def __init__(
        self,
        calls: SystemCalls,
        inodes: InodeTable,
        forms: FileForms,
        policy: PolicyInUse,
        complaints: Complaints,
        manifest: Bound | None = None,
    ) -> None:
        self._calls = calls
        self.manifest = manifest or Bound(calls)
        self._inodes = inodes
        self._forms = forms
        self._policy = policy
        self._twins = Twins(calls, inodes)
        self.complaints = complaints
        #: Open files without handles, the least recently used first.
        self._idle: OrderedDict[Inode, None] = OrderedDict()
        inodes.descriptors.give_up = self._close_some_idle

    @property
    def forms(self) -> FileForms:
        """What knows the keys in use."""
        return self._forms

    def key_name_at(self, path: str) -> str | None:
        """Return which data key the policy names for *path*; ``None``: none, so it is the default one."""
        return self._decide(path).key_name

    def refuse_planted(self, inode: Inode) -> None:
        """Refuse what was put into the backing directory and is no file, directory or link.

        :raises OSError: EIO; the log says why.
        """
        if inode.is_planted:
            error = PlantedNode(PLANTED_NODE)
            raise self.presented_as(inode, error) from error

    def may_be_special(self, inode: Inode) -> bool:
        """Tell whether a FIFO, socket or device may lie where *inode* does: not where PostgreSQL opens a file."""
        return not any(classify(path).kind in _NEVER_SPECIAL for path in self._inodes.paths(inode))

    def open(self, inode: Inode, *, writable: bool) -> DataFile:
        """Return the open file of *inode*, opened now if it is not.

        :raises OSError: EIO or ENOKEY for a file that cannot be presented; the log says why.
        """
        self.manifest.check(inode)
        self.refuse_planted(inode)
        if inode.open_file is not None:
            self._check_other_names(inode)
            self._check_twins(inode)
            self._idle.pop(inode, None)
            if writable and not inode.open_file.writable:
                self._make_writable(inode, inode.open_file)
            return inode.open_file
        fd, can_write = self._open_backing(inode, writable=writable)
        try:
            form = self._read_form(inode, fd)
            self.manifest.check(inode)
            if isinstance(form, Empty) and writable:
                form = self._settle(inode, fd, form)
            status = self._calls.fstat("open:stat", fd)
            content = self._content(inode, fd, form, status.st_size, can_write=can_write)
        except BaseException:
            self._inodes.descriptors.let_go("open:undo", fd)
            raise
        # what is not settled yet is settled by the first who opens it to write
        return self._opened(inode, fd, content, status, writable=can_write and not isinstance(form, Empty))

    def create(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, DataFile]:
        """Make a new file, encrypted or plain as the policy says, and open it.

        :raises OSError: nothing is left of the file then.
        """
        path = path_of(parent, name)
        directory = self._inodes.directory_fd(parent)
        self.manifest.will_come(parent, name)
        fd = self._inodes.descriptors.create_at("create:open", name, os.O_RDWR, mode, directory, owner)
        inode: Inode | None = None
        try:
            status = self._calls.fstat("create:stat", fd)
            inode = self._inodes.enter(parent, name, status)
            decision = self._decide(path)
            form: Form = Plain()
            size = 0
            if decision.encrypted:
                form = Encrypted(self._forms.new_header(decision.key_name, identity_at(path)), unused=True)
                self._write_new_header(path, fd, form.header)
                size = HEADER_SIZE
            else:
                mark_plain(self._calls, "create:mark", fd)
            content = self._content(inode, fd, form, size, can_write=True)
        except BaseException:
            self._inodes.descriptors.let_go("create:undo", fd)
            self.undo("create", path, lambda: self._calls.unlink("create:undo", name, directory))
            if inode is not None:
                self._inodes.removed(inode, parent, name, last=True)
            raise
        inode.form = form
        if isinstance(form, Encrypted):
            self._twins.ids.add(form.header.file_id, inode.key)
        self._inodes.name_added(parent, inode)
        return inode, self._opened(inode, fd, content, status, writable=True)

    def _opened(
        self, inode: Inode, fd: int, content: Content, status: os.stat_result, *, writable: bool
    ) -> DataFile:
        inode.open_file = DataFile(
            fd,
            content,
            status,
            inode.losses,
            partial(self._inodes.sync_names_above, inode),
            writable=writable,
            names_durable=not self._inodes.unsynced_above(inode),
        )
        return inode.open_file

    def create_special(self, parent: Inode, name: bytes, mode: int, owner: Owner, special: Special) -> None:
        """Make the file that stands for a FIFO, socket or device. It is durable, since nobody can sync it later.

        :raises OSError: nothing is left of the file then.
        """
        path = path_of(parent, name)
        if classify(path).kind in _NEVER_SPECIAL:
            raise OSError(EPERM, os.strerror(EPERM))
        directory = self._inodes.directory_fd(parent)
        fd = self._inodes.descriptors.create_at("special:open", name, os.O_RDWR, mode, directory, owner)
        try:
            header = self._forms.new_header(self.key_name_at(path), special.identity)
            self._write_new_header(path, fd, header)
            self._calls.fdatasync("special:sync", fd)
        except BaseException:
            self.undo("create", path, lambda: self._calls.unlink("special:undo", name, directory))
            raise
        finally:
            self._inodes.descriptors.let_go("special:close", fd)

    def undo(self, operation: str, path: str, work: Callable[[], None]) -> None:
        """Take back a step of something that failed; if that fails, too, the next mount will have to."""
        self.complaints.undo(operation, printable_path(os.fsencode(path)), work)

    def close_if_unused(self, inode: Inode) -> None:
        """Put a file without handles aside: for each connection PostgreSQL opens the same ones again."""
        file = inode.open_file
        if file is None or file.handles > 0:
            return
        if not inode.names or inode.lookups <= 0:
            self._close(inode, file)
            return
        self._idle[inode] = None
        self._idle.move_to_end(inode)
        if len(self._idle) > _IDLE_FILES:
            self._close_idle_file(self._idle.popitem(last=False)[0])

    def close_idle(self, inode: Inode) -> None:
        """Close the file of *inode* if it is only put aside; without a name its descriptor is held."""
        if inode in self._idle:
            del self._idle[inode]
            self._close_idle_file(inode)

    def _close_idle_file(self, inode: Inode) -> None:
        assert inode.open_file is not None  # noqa: S101 - what is put aside is open
        self._close(inode, inode.open_file)

    def _close_some_idle(self) -> bool:
        """Close what was put aside longest ago, at last what has no name; return whether there was anything."""
        closed = 0
        while self._idle and closed < _IDLE_FILES_GIVEN_UP:
            self._close_idle_file(self._idle.popitem(last=False)[0])
            closed += 1
        return closed > 0 or self._inodes.held.give_up()

    def close_all_idle(self) -> None:
        """Close everything that is put aside."""
        while self._idle:
            self._close_idle_file(self._idle.popitem()[0])

    def use_ring(self, ring: KeyRing) -> None:
        """Use other keys from now on. What programs have open stays readable to them until they close it."""
        self._forms.use_ring(ring)
        self.close_all_idle()
        for inode in self._inodes:
            if inode.open_file is None and isinstance(inode.form, Encrypted | Broken):
                inode.form = None

    def use_policy(self, policy: Policy) -> None:
        """Decide by another policy from now on. A file that programs have open stays as it is.

        Whether a file that starts with zeros is plain depends on the policy, so that is found out again.
        """
        self._policy.use(policy)
        self.close_all_idle()
        for inode in self._inodes:
            if inode.open_file is None and isinstance(inode.form, Plain | Empty | Broken):
                inode.form = None

    def _close(self, inode: Inode, file: DataFile) -> None:
        """Close. No program asked for that, so an error is reported to the next one that syncs."""
        path = inode.shown()
        inode.open_file = None
        if not inode.names and inode.lookups > 0:
            links = self._note_last_status(inode, file)
            if inode not in self._inodes.held:
                if links == 0:
                    # there is nothing left to lose, so nobody need be told of an error of close(2)
                    self._inodes.held.keep(inode, file.fd)
                    return
                self._hold_linked(inode, file)
        try:
            self._calls.close("file:close", file.fd)
        except OSError as error:
            # a network file system writes then
            self.complaints.failed("close", path, error)
            inode.losses.failed(errno_of(error), Event.FAILED_UNNOTICED)
        self._inodes.drop_if_unused(inode)

    def _note_last_status(self, inode: Inode, file: DataFile) -> int:
        """Note what the kernel may still ask of a file without a name; return how many links are left of it."""
        try:
            file.status = self._calls.fstat("file:last", file.fd)
        except OSError as error:
            self.complaints.failed("close", inode.shown(), error)
        inode.ghost = Ghost(file.status, file.length, file.status.st_nlink, inode.path())
        return file.status.st_nlink

    def _hold_linked(self, inode: Inode, file: DataFile) -> None:
        """Keep a descriptor of a file that has names, but none here, so that its own can be closed."""
        try:
            fd = self._inodes.descriptors.open_at("close:hold", b"", os.O_PATH, 0, file.fd)
        except OSError as error:
            self.complaints.failed("close (hold)", inode.shown(), error)
        else:
            self._inodes.held.keep(inode, fd)

    def length(self, inode: Inode, status: os.stat_result) -> int:
        """Return the plaintext length of a regular file whose backing file has *status*.

        :raises OSError: it cannot be told at the moment. A wrong answer would be remembered by the kernel.
        """
        if inode.open_file is not None:
            return inode.open_file.length
        if inode.ghost is not None:
            return inode.ghost.length
        if status.st_size == 0:
            return 0
        form = self.form(inode)
        if isinstance(form, Plain):
            return status.st_size
        try:
            return form.length if isinstance(form, Empty) else plaintext_length(status.st_size)
        except DamagedLength:
            # of a file that cannot be opened; others in the directory can be, so it must be possible to list it
            return max(0, status.st_size - HEADER_SIZE)

    def form(self, inode: Inode) -> Form:
        """Return what the file says of itself."""
        if inode.form is None:
            fd = self._open_closed("form:open", inode, os.O_RDONLY)
            try:
                self._read_form(inode, fd)
            finally:
                self._inodes.descriptors.let_go("form:close", fd)
        assert inode.form is not None  # noqa: S101 - _read_form has set it
        return inode.form

    def bind(self, inode: Inode, *identities: Identity) -> None:
        """Write a header that binds *inode* to *identities*, and make it durable; does nothing to plain files."""
        form = self.form(inode)
        if not isinstance(form, Encrypted) or form.header.identities == identities:
            return
        header = form.header.bound_to(*identities)
        self.manifest.will_change(inode)
        # not by way of open(): what is wrong with the content is no reason to leave the header behind
        fd = self._open_for_header(inode)
        try:
            self._calls.pwrite("bind:header", fd, self._forms.encode(header), 0)
            self._sync_header("bind:sync", inode, fd)
        finally:
            if inode.open_file is None or fd != inode.open_file.fd:
                self._inodes.descriptors.let_go("bind:close", fd)
        inode.form = replace(form, header=header)

    def _sync_header(self, label: str, inode: Inode, fd: int) -> None:
        try:
            self._calls.fdatasync(label, fd)
        except OSError as error:
            # what it tells may be about data, and nobody who synced has been told
            inode.losses.failed(errno_of(error), Event.FAILED_UNNOTICED)
            raise

    def _open_for_header(self, inode: Inode) -> int:
        """Return a descriptor of *inode*'s backing file that can write: the open file's, or a new one."""
        if inode.open_file is not None and inode.open_file.writable:
            return inode.open_file.fd
        return self._open_closed("bind:open", inode, os.O_RDWR)

    def bound(self, inode: Inode) -> tuple[Identity, ...]:
        """Return what *inode* is bound to; nothing for a file that is not encrypted, or cannot be read."""
        form = self.form(inode)
        return form.header.identities if isinstance(form, Encrypted) else ()

    def check_may_lie_at(self, inode: Inode, path: str) -> None:
        """Refuse to let a plain file get a name under which the policy encrypts.

        :raises OSError: EXDEV, upon which mv(1) copies, and the copy is encrypted; PostgreSQL removes a WAL
            segment that it cannot recycle.
        """
        if isinstance(self.form(inode), Plain) and self._decide(path).encrypted:
            raise OSError(EXDEV, os.strerror(EXDEV))

    def give_up_identity(self, inode: Inode, new_identity: Identity) -> tuple[Identity, ...]:
        """Before a hard link under *new_identity*: a file with two identities is bound to none.

        :returns: what it was bound to, to be restored if there will be no link; nothing if that did not change.
        """
        bound = self.bound(inode)
        if not bound or new_identity in bound or ANY_PLACE in bound or special_of(bound) is not None:
            return ()
        self.bind(inode, ANY_PLACE)
        return bound

    def _decide(self, path: str) -> Decision:
        return self._policy.decide(path)

    def _open_backing(self, inode: Inode, *, writable: bool) -> tuple[int, bool]:
        """Open for reading and writing: with write-back caching the kernel reads from files opened write-only."""
        try:
            return self._inodes.open_inode("open:rw", inode, os.O_RDWR), True
        except OSError as error:
            if error.errno not in (EACCES, EPERM, EROFS) or (writable and error.errno != EACCES):
                raise
        if writable:
            return self._open_closed("open:rw", inode, os.O_RDWR), True
        return self._open_closed("open:ro", inode, os.O_RDONLY), False

    def _open_closed(self, label: str, inode: Inode, flags: int) -> int:
        """Open a file also where its mode keeps its own owner out, who is the daemon's user.

        The kernel has checked who may do what; the daemon must read the header, and the rest of a page of which
        a part is written, whatever the mode.
        """
        try:
            return self._inodes.open_inode(label, inode, flags)
        except PermissionError as error:
            refusal = error
        with self._inodes.reached("open:closed", inode) as fd:
            status = self._calls.stat("open:closed", b"", fd)
            if status.st_uid != os.geteuid():
                raise refusal
            mode = stat.S_IMODE(status.st_mode)
            self._calls.chmod("open:unlock", fd, mode | stat.S_IRUSR | stat.S_IWUSR)
            try:
                return self._inodes.descriptors.open_at(label, b"", flags, 0, fd)
            finally:
                self._calls.chmod("open:relock", fd, mode)

    def _make_writable(self, inode: Inode, file: DataFile) -> None:
        """Exchange a read-only descriptor for one that can write, under the same number, and settle the file."""
        fd = self._open_closed("open:rw", inode, os.O_RDWR)
        try:
            os.dup2(fd, file.fd, inheritable=False)
        finally:
            self._inodes.descriptors.let_go("open:upgrade", fd)
        if inode.form is None or isinstance(inode.form, Empty):
            form = self._read_form(inode, file.fd)
            if isinstance(form, Empty):
                form = self._settle(inode, file.fd, form)
            size = self._calls.fstat("open:stat", file.fd).st_size
            file.exchange(self._content(inode, file.fd, form, size, can_write=True))
        file.writable = True

    def _read_form(self, inode: Inode, fd: int) -> Form:
        """Read what the file says of itself, unless that is known; log what is wrong with it."""
        if inode.form is None:
            size = self._calls.fstat("form:stat", fd).st_size
            page = self._calls.pread("form:read", fd, RECORD_SIZE, 0)
            if not any(page):
                page = self._calls.pread("form:read", fd, HEADER_SIZE, 0)
            self.manifest.check_header(inode, page, size)
            path = os.fsdecode(inode.path())
            doubts = StoredDoubts(
                self._calls,
                fd,
                size,
                lambda: self._decide(path).encrypted,
                lambda: self.manifest.had_header(inode),
            )
            inode.form = self._forms.recognise(page, size, doubts)
            if isinstance(inode.form, Plain) and self._decide(path).encrypted:
                self.manifest.check_plain(inode)
            self._note_file_id(inode)
        return inode.form

    def _settle(self, inode: Inode, fd: int, empty: Empty) -> Form:
        """Decide about a file that is neither encrypted nor plain as if it were created now."""
        path = os.fsdecode(inode.path())
        decision = self._decide(path)
        form: Form = Plain()
        self.manifest.will_change(inode)
        inode.form = None  # until it is known what has become of the file
        if decision.encrypted:
            header = self._forms.new_header(decision.key_name, self._identity_under_all_names(inode))
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
        self._note_file_id(inode)
        return form

    def _remove_mark(self, path: str, fd: int) -> None:
        try:
            remove_mark(self._calls, "settle:unmark", fd)
        except OSError as error:
            # who finds the header does not look at the mark
            self.complaints.failed("open", printable_path(os.fsencode(path)), error)

    def _write_new_header(self, path: str, fd: int, header: Header, length: int = 0) -> None:
        """Write the header of a file of *length* zeros.

        The size comes first: a file shorter than its header is damage. Where plain files may lie, too, a header
        that a crash took away could not be told from a plain file's zeros, so it must not get lost.
        """
        self._calls.ftruncate("create:size", fd, stored_size(length))
        try:
            self._calls.pwrite("create:header", fd, self._forms.encode(header), 0)
            if self._forms.plain_files:
                self._calls.fdatasync("create:sync", fd)
        except OSError:
            self.undo("create", path, lambda: self._empty(fd, length))
            raise

    def _empty(self, fd: int, length: int) -> None:
        """Make a file all zero again, of its old size."""
        self._calls.ftruncate("create:undo", fd, 0)
        self._calls.ftruncate("create:undo", fd, length)

    def _content(self, inode: Inode, fd: int, form: Form, size: int, *, can_write: bool) -> Content:
        """Return the content of an open backing file of *size* stored bytes, after the last checks.

        :raises OSError: EIO or ENOKEY for a file that cannot be presented; the log says why.
        """
        store = BackingStore(self._calls, fd)
        try:
            if isinstance(form, Broken):
                raise form.error
            if isinstance(form, Empty):
                size = form.length
            if isinstance(form, Encrypted):
                self._check_place(inode, form.header, fd, can_write=can_write)
                self._note_file_id(inode)
                self._check_twins(inode)
                cipher = self._forms.cipher(form.header)
                return StoredFile(store, cipher, size, lambda: self._begin(inode, fd))
            if isinstance(form, Empty):
                # it cannot be written to; where the header is lost, the rest is no content for anybody
                size = form.length
            return PlainContent(store, size, lambda head: self._refuse_header(inode, head))
        except FormatError as error:
            raise self.presented_as(inode, error) from error

    def _begin(self, inode: Inode, fd: int) -> PageCipher | None:
        """Before an open empty file gets its first byte: see that nothing was ever encrypted under its file id.

        What was in the file before, in this session or an earlier one, was encrypted under the id that it has; and
        who has copied its header has given that id to another file. At whatever moment this stops, a reader finds
        the old header and the old content, or none, or the new header and none: the truncation is durable before
        the new header is written, and that before the content.

        :returns: the cipher of the new file id; ``None`` where the file's own was never used.
        :raises OSError: the file is empty, and can be written to when there is no error any more.
        """
        form = inode.form
        assert isinstance(form, Encrypted)  # noqa: S101 - an open file's form stays what it is
        if form.unused:
            inode.form = replace(form, unused=False)
            return None
        path = os.fsdecode(inode.path())
        header = self._forms.renewed(form.header, self._decide(path).key_name)
        # PostgreSQL removes temporary files when it starts, and nobody finds one without a name
        is_left = inode.ghost is None or inode.ghost.links > 0
        lasting = is_left and classify(path).kind is not Kind.TEMP
        if lasting:
            self._sync_header("begin:truncated", inode, fd)
        self._calls.pwrite("begin:header", fd, self._forms.encode(header), 0)
        self._twins.ids.remove(form.header.file_id, inode.key)
        inode.form = Encrypted(header)
        self._note_file_id(inode)
        if lasting:
            self._sync_header("begin:sync", inode, fd)
        return self._forms.cipher(header)

    def _note_file_id(self, inode: Inode) -> None:
        """Note which file shows a file id, if it lies where it may be opened."""
        form = inode.form
        if isinstance(form, Encrypted) and inode.names and self._is_at_home(inode, form.header):
            self._twins.ids.add(form.header.file_id, inode.key)

    def forget_file_id(self, inode: Inode) -> None:
        """Note that the last name of *inode* is gone."""
        if isinstance(inode.form, Encrypted):
            self._twins.ids.remove(inode.form.header.file_id, inode.key)

    def _check_twins(self, inode: Inode) -> None:
        """Refuse both of two files with one file id, since they have one key.

        What is open already goes on: it is not known which of them is the copy, and no new content is mixed with
        old as long as nobody can open the other. So it is with a copy that the manifest refuses.

        :raises OSError: EIO.
        """
        if not isinstance(inode.form, Encrypted):
            return
        others = self._twins.of(inode, inode.form.header.file_id)
        others = [path for path in others if not self.manifest.is_refused_at(path)]
        if others:
            names = ", ".join(f'"{printable_path(path)}"' for path in others)
            raise self.presented_as(inode, SharedFileId(f"its file id is also that of {names}"))

    def _check_other_names(self, inode: Inode) -> None:
        """Check an open file again that has several names: by which of them it is opened, the kernel does not say.

        :raises OSError: EIO.
        """
        if len(inode.names) < 2 or not isinstance(inode.form, Encrypted):
            return
        try:
            self._check_identity_at_all_names(inode, inode.form.header)
        except FormatError as error:
            raise self.presented_as(inode, error) from error

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

    def _check_place(self, inode: Inode, header: Header, fd: int, *, can_write: bool) -> None:
        """Check that the file lies where it belongs, and end a rename that a crash left half done."""
        if not inode.names:
            return
        self._check_identity_at_all_names(inode, header)
        identity = identity_at(os.fsdecode(inode.path()))
        if len(header.identities) > 1 and can_write and self._inodes.is_entry_durable(inode):
            settled = header.bound_to(identity)
            try:
                self.manifest.will_change(inode)
                self._calls.pwrite("bind:settle", fd, self._forms.encode(settled), 0)
            except OSError as error:
                # it can be opened as it is
                self.complaints.failed("open", inode.shown(), error)
                return
            inode.form = Encrypted(settled)

    def _identity_under_all_names(self, inode: Inode) -> Identity:
        """Return what a file without a header is to be bound to: to no place, if it has names in several."""
        places = {identity_at(path) for path in self._inodes.paths(inode)}
        return places.pop() if len(places) == 1 else ANY_PLACE

    def _check_identity_at_all_names(self, inode: Inode, header: Header) -> None:
        """Check that a file lies where it belongs, under all names that are known.

        A link that is made through the mount gives the identity up; one that was made in the backing directory
        puts the file in another's place.

        :raises IdentityMismatch: under one of them it does not.
        """
        if self._is_at_home(inode, header):
            return
        for path in self._inodes.paths(inode):
            check_identity(header, identity_at(path))

    @staticmethod
    def _is_at_home(inode: Inode, header: Header) -> bool:
        """Tell whether a file belongs where it lies, under all names that are known."""
        return all(header.accepts(identity_at(path_of(parent, name))) for parent, name in inode.names)

    def presented_as(self, inode: Inode, error: FormatError) -> Told:
        """Log why *inode* cannot be presented; return the error for who opens it."""
        names = ", ".join(printable_path(os.fsencode(path)) for path in self._inodes.paths(inode))
        log.error("%s: %s (HINT: %s)", names or inode.shown(), error, error.hint)
        return Told(error.errno, os.strerror(error.errno))

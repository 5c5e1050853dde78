"""What the headers of files are bound to: checked when a file is opened, changed when it is renamed."""

from __future__ import annotations

import os
from errno import EXDEV

from tdefs.data.complaints import Complaints
from tdefs.data.forms import Encrypted, Plain
from tdefs.data.identity import check_identity, identity_at
from tdefs.format.errors import FormatError, SharedFileId
from tdefs.format.header import ANY_PLACE, Header, Identity
from tdefs.format.special import special_of
from tdefs.manifest.bound import Bound
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.paths import Kind, classify
from tdefs.text import printable_path
from tdefs.tree.file_ids import SharedFileIds, is_at_home
from tdefs.tree.headers import Headers
from tdefs.tree.inode import Inode
from tdefs.tree.places import Places
from tdefs.tree.refusals import refusal
from tdefs.tree.unsynced_names import UnsyncedNames

#: A program would wait for a FIFO in the place of such a file. The name alone shows that it must be a file.
NEVER_SPECIAL = frozenset(
    {
        *(Kind.RELATION, Kind.CATALOG, Kind.RELATION_MAP, Kind.CONTROL, Kind.VERSION, Kind.CONFIGURATION),
        *(Kind.WAL, Kind.SLRU, Kind.TWO_PHASE, Kind.SIGNAL, Kind.BACKUP, Kind.REPLICATION, Kind.STATISTICS),
    }
)


class Identities:
    """What the files of one mount are bound to."""

    def __init__(
        self,
        places: Places,
        unsynced_names: UnsyncedNames,
        headers: Headers,
        policy: PolicyInUse,
        manifest: Bound,
        shared_ids: SharedFileIds,
        complaints: Complaints,
    ) -> None:
        self._places = places
        self._unsynced_names = unsynced_names
        self._headers = headers
        self._policy = policy
        self._manifest = manifest
        self._shared_ids = shared_ids
        self._complaints = complaints

    # --- changing it

    def bound(self, inode: Inode) -> tuple[Identity, ...]:
        """Return what *inode* is bound to; nothing for a file that is not encrypted, or cannot be read."""
        form = self._headers.form(inode)
        return form.header.identities if isinstance(form, Encrypted) else ()

    def bind(self, inode: Inode, *identities: Identity) -> None:
        """Write a header that binds *inode* to *identities*, and make it durable; does nothing to plain files."""
        form = self._headers.form(inode)
        if not isinstance(form, Encrypted) or form.header.identities == identities:
            return
        self._manifest.will_change(inode)
        self._headers.replace(inode, form.header.bound_to(*identities))

    def give_up(self, inode: Inode, new_identity: Identity) -> tuple[Identity, ...]:
        """Before a hard link under *new_identity*: bind a file that would have two identities to no place.

        :returns: what it was bound to, for the case that the link is not made; nothing if that did not change.
        """
        bound = self.bound(inode)
        if not bound or new_identity in bound or ANY_PLACE in bound or special_of(bound) is not None:
            return ()
        self.bind(inode, ANY_PLACE)
        return bound

    def end_rename(self, inode: Inode, header: Header, fd: int) -> None:
        """End a rename that a crash interrupted: bind an open file only to the place where it lies now."""
        if len(header.identities) < 2 or not inode.names or not self._unsynced_names.is_entry_durable(inode):
            return
        settled = header.bound_to(identity_at(os.fsdecode(inode.path())))
        try:
            self._manifest.will_change(inode)
            self._headers.write_header("bind:settle", fd, settled)
        except OSError as error:
            # it can be opened as it is
            self._complaints.failed("open", inode.shown(), error)
            return
        inode.form = Encrypted(settled)

    def under_all_names(self, inode: Inode) -> Identity:
        """Return the identity for a file without a header: of any place, if its names have different ones."""
        places = {identity_at(path) for path in self._places.paths(inode)}
        return places.pop() if len(places) == 1 else ANY_PLACE

    # --- checking it

    def check_may_lie_at(self, inode: Inode, path: str) -> None:
        """Check that *path* is not a place where the policy encrypts, if the file is plain.

        :raises OSError: EXDEV. Then mv(1) copies, and the copy is encrypted; PostgreSQL removes a WAL
            segment that it cannot recycle.
        """
        if isinstance(self._headers.form(inode), Plain) and self._policy.encrypts(path):
            raise OSError(EXDEV, os.strerror(EXDEV))

    def check_at_all_names(self, inode: Inode, header: Header) -> None:
        """Check that a file lies where it belongs, under all names that are known.

        A hard link made through the mount frees the file from its identity. A hard link made in the backing
        directory puts the file in the place of another one.

        :raises IdentityMismatch: it does not belong under one of them.
        """
        if is_at_home(inode, header):
            return
        for path in self._places.paths(inode):
            check_identity(header, identity_at(path))

    def check_open(self, inode: Inode) -> None:
        """Check again, before one more program opens it, that an open file belongs where it lies.

        If it has several names, the kernel does not say by which of them it is opened.

        :raises OSError: EIO.
        """
        if len(inode.names) > 1 and isinstance(inode.form, Encrypted):
            try:
                self.check_at_all_names(inode, inode.form.header)
            except FormatError as error:
                raise refusal(self._places, inode, error) from error
        self.check_file_id_is_unique(inode)

    def check_file_id_is_unique(self, inode: Inode) -> None:
        """Check that no other file has the file id of *inode*; both are refused then, since they have one key.

        A file that is open already stays in use: it is not known which of them is the copy, and no new content is
        mixed with old as long as no program can open the other. The same is true of a copy that the manifest
        refuses.

        :raises OSError: EIO.
        """
        if not isinstance(inode.form, Encrypted):
            return
        others = self._shared_ids.others_with(inode, inode.form.header.file_id)
        others = [path for path in others if not self._manifest.is_refused_at(path)]
        if others:
            names = ", ".join(f'"{printable_path(path)}"' for path in others)
            raise refusal(self._places, inode, SharedFileId(f"its file id is also that of {names}"))

    def may_be_special(self, inode: Inode) -> bool:
        """Return whether a FIFO, socket or device may lie where *inode* does: not among files of the server."""
        return not any(classify(path).kind in NEVER_SPECIAL for path in self._places.paths(inode))

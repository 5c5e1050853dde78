"""The manifest during a mount: files that differ are refused, and each change is noted before it is made."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from errno import EIO, EROFS
from typing import Protocol

from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import LoggedRefusal
from tdefs.manifest.comparing import DISPENSABLE_KINDS, LISTED_KINDS, SPEAKING_KINDS, Change, Difference
from tdefs.manifest.found import ChangedFile, Tampering
from tdefs.manifest.journal import Journal, prepare_journal
from tdefs.manifest.record import PLAIN_TAG, Listing, NodeKind
from tdefs.manifest.state import NAMED, State, counted, mark, mark_unbound, write_manifest
from tdefs.manifest.taking import take
from tdefs.manifest.tree import fits, join
from tdefs.policy.model import Policy
from tdefs.policy.paths import Kind, classify
from tdefs.private import UntrustedError, reason_of
from tdefs.text import printable_path
from tdefs.volume.known import note_counter

log = logging.getLogger(__name__)

# After so many names were removed from one directory within a short time, others are likely to follow.
_FEW_REMOVALS = 8
_REMOVAL_SECONDS = 1.0
_MOST_AT_ONCE = 1024
# so many differences are named in the status
_MOST_SHOWN = 100
# and so many in the log: a user who can plant a million files must not fill the disk with it at each mount
_MOST_LOGGED = 10_000


class Node(Protocol):
    """A file, directory or link of the tree that is served, as far as the manifest needs it."""

    #: Whether the manifest may bind it.
    bound: bool

    @property
    def backing(self) -> tuple[int, int]:
        """Device and inode number in the backing directory."""

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""

    @property
    def names(self) -> Sequence[tuple[Node, bytes]]:
        """Where it lies: parent and name."""

    def path(self) -> bytes:
        """Return the path relative to the mount point."""


class Bound:
    """The manifest of one mount. Without a state, as in a volume that was never unmounted, nothing is bound.

    ``Inode.bound`` says whether a file may be bound, so each write costs only one check; paths are made only once.
    """

    def __init__(
        self,
        calls: SystemCalls,
        state: State | None = None,
        *,
        refuses: bool = True,
        left_plain: bool = False,
    ) -> None:
        """:param refuses: whether files that differ are refused, or only reported.

        :param left_plain: whether files that no manifest knows may be in the clear where the policy encrypts.
        """
        self._left_plain = left_plain
        #: The policies before the one in use: programs may have made files that these left in the clear.
        self._earlier_policies: list[Policy] = []
        self._calls = calls
        self._state = state
        self._manifest = state.manifest if state is not None else None
        self._refuses = refuses
        self._journal: Journal | None = None
        self._logged: set[bytes] = set()
        self._accepted: set[bytes] = set()
        # the directory from which names are removed, how many were, and when the last one was
        self._going: tuple[bytes, int, float] = (b"", 0, 0.0)

    # --- the mount as a whole

    def begin(self) -> None:
        """Begin to serve a volume that may be changed.

        :raises OSError: the journal cannot be begun.
        """
        if self._state is None or self._manifest is None or self._state.binding.key is None:
            return
        binding = self._state.binding
        self._journal = Journal(self._calls, binding.volume, self._state.binding.key, self._manifest)

    def log(self) -> None:
        """Log what differs, and what the last sessions left unbound."""
        if self._state is None:
            return
        state = self._state
        for line in state.describe_volume():
            log.warning("%s", line)
        found = sorted(state.differences.items())
        for path, difference in found[:_MOST_LOGGED]:
            log.error("%s: not as the last unmount left it: %s", printable_path(path), difference)
        if len(found) > _MOST_LOGGED:
            log.error(
                "and %s not as the last unmount left things (HINT: 'tdefs accept --list' names them)",
                counted(len(found) - _MOST_LOGGED),
            )
        if state.changed.everything:
            log.warning(
                "the last session did not end cleanly, and its journal was full: no file is bound any more"
            )
        elif state.unbound:
            names = sorted(state.unbound.paths)
            more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
            log.warning(
                "the last session did not end cleanly: %s not bound by the manifest any more: %s%s",
                counted(len(names)),
                ", ".join(map(printable_path, names[:NAMED])),
                more,
            )

    def finish(self) -> None:
        """Write the next manifest, once all is on the disk; after a failure the old one and its journal stay."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._state is None or self._state.binding.key is None:
            return
        self._state.know_entry()
        binding, key = self._state.binding, self._state.binding.key
        try:
            manifest = take(self._state)
            prepare_journal(binding.volume)
            write_manifest(binding.volume, manifest, key)
        except (OSError, UntrustedError) as error:
            log.error(
                "the manifest could not be written: %s; the one before, with the journal of what changed since, "
                "stays valid (HINT: see that there is room on the disk)",
                reason_of(error),
            )
            return
        if binding.entry is None or binding.history_key is None:
            return
        try:
            note_counter(binding.keystore, binding.history_key, binding.entry, manifest.counter)
        except (OSError, UntrustedError) as error:
            log.warning(
                "the manifest's counter could not be written to the keystore's history: %s", reason_of(error)
            )

    def close(self) -> None:
        """End without a manifest: the journal says what changed."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def status(self) -> Tampering | None:
        """Return what is bound and what differs, for the status; ``None`` without a state."""
        state = self._state
        if state is None:
            return None
        names = sorted(state.differences.items())
        return Tampering(
            setting="refuse" if self._refuses else "report",
            counter=self._manifest.counter if self._manifest is not None else None,
            lost=state.lost or None,
            older_than=state.older_than or None,
            unbound=len(state.unbound),
            count=len(names),
            differences=tuple(
                ChangedFile(printable_path(path), found.change.value, found.detail)
                for path, found in names[:_MOST_SHOWN]
            ),
        )

    def accept(self, paths: Iterable[bytes], *, older_copy: bool) -> int:
        """Accept differences; return how many there are.

        An accepted file is not bound until the next manifest, which has it as it is then.

        :raises OSError: they could not be noted, or the volume is only read.
        """
        if self._state is None:
            return 0
        if self._journal is None and self._manifest is not None:
            raise OSError(EROFS, os.strerror(EROFS))
        accepted = list(paths)
        self._unbind(accepted)
        self._accepted.update(accepted)
        for path in accepted:
            self.differences.pop(path, None)
        for path in accepted:
            log.warning("%s: accepted as found", printable_path(path))
        if older_copy:
            self._state.older_than, self._state.lost = 0, ""
            log.warning("accepted: the volume is an older copy, or had lost its manifest")
        return len(accepted)

    @property
    def differences(self) -> dict[bytes, Difference]:
        """The differences, by path."""
        return self._state.differences if self._state is not None else {}

    # --- what is found

    def check(self, inode: Node) -> None:
        """Check that *inode* does not differ.

        :raises OSError: EIO.
        """
        if self._state is None or not self._state.differences:
            return
        for path in _paths(inode):
            found = self.differences.get(path)
            if found is not None and found.change is not Change.REMOVED:
                self._refuse(path, found)

    def check_below(self, directory: Node) -> None:
        """Check that nothing differs in a directory that will be moved: at another place no check could see it.

        :raises OSError: EIO.
        """
        above = directory.path() + b"/"
        for path, found in sorted(self.differences.items()):
            if path.startswith(above) and not (found.change is Change.REMOVED and self._is_dispensable(path)):
                self._refuse(path, found)

    def is_refused(self, inode: Node) -> bool:
        """Return whether :meth:`check` would refuse *inode*."""
        return any(map(self.is_refused_at, _paths(inode)))

    def is_refused_at(self, path: bytes) -> bool:
        """Return whether the file at *path* is refused because it differs."""
        found = self.differences.get(path) if self._refuses else None
        return found is not None and found.change is not Change.REMOVED

    def missing_in(self, directory: Node) -> list[bytes]:
        """Return the names that somebody removed from *directory* and that are listed: a server acts on them.

        To look one of them up is an error, see :meth:`check_missing`.
        """
        if not self._refuses or not self.differences:
            return []
        above = directory.path()
        return [
            path.rpartition(b"/")[2]
            for path, found in self.differences.items()
            if found.change is Change.REMOVED and path.rpartition(b"/")[0] == above and self._is_listed(path)
        ]

    def had_header(self, inode: Node) -> bool:
        """Return whether a header of *inode* is known to have been on the disk, so that no crash has lost it."""
        return self._state is not None and any(map(self._state.binds, _paths(inode)))

    def check_header(self, inode: Node, head: bytes, size: int) -> None:
        """Note a difference if a file of *size* stored bytes that starts with *head* does not fit the manifest."""
        if self._manifest is None or not inode.bound:
            return
        for path in _paths(inode):
            place = self._manifest.find(path)
            if place is None or place[0].unbound[place[1]] or path in self.differences:
                continue
            entry = place[0].entry(place[1])
            found: Difference | None = None
            if entry.kind is NodeKind.FILE and entry.length != size:
                found = Difference(Change.LENGTH, f"{entry.length} stored bytes before, {size} now")
            elif not fits(entry.tag, head, self._manifest.volume_id):
                found = Difference(Change.HEADER, "its header is another one")
            if found is not None:
                self.differences[path] = found
                log.error("%s: not as the last unmount left it: %s", printable_path(path), found)

    def check_plain(self, inode: Node) -> None:
        """Note that *inode* is in the clear where the policy encrypts, unless it was so at the last unmount.

        Through a mount no file comes to such a place in the clear. So the file is older than the policy, and the
        manifest knows it, or somebody has put it there. The manifest may lack such files only if the policy was
        changed after a session that did not end cleanly.
        """
        if self._state is None or self._state.binding.key is None or self._left_plain:
            return
        for path in _paths(inode):
            place = self._manifest.find(path) if self._manifest is not None else None
            was_plain = place is not None and place[0].entry(place[1]).tag == PLAIN_TAG
            was_plain = was_plain or self._was_left_plain(path)
            if not was_plain and path not in self._accepted and path not in self.differences:
                found = Difference(Change.ADDED, "it is in the clear where the policy encrypts")
                self.differences[path] = found
                log.error("%s: not as the last unmount left it: %s", printable_path(path), found)

    def note_policy(self, policy: Policy) -> None:
        """Note a policy of this mount that is replaced by another one."""
        if all(policy.digest() != known.digest() for known in self._earlier_policies):
            self._earlier_policies.append(policy)

    def _was_left_plain(self, path: bytes) -> bool:
        """Return whether an earlier policy of this mount left new files at *path* in the clear."""
        text = os.fsdecode(path)
        return any(not policy.decide(classify(text), text).encrypted for policy in self._earlier_policies)

    def check_missing(self, parent: Node, name: bytes) -> None:
        """Check that a missing file was not removed by somebody else, if PostgreSQL would act on its absence.

        :raises OSError: EIO.
        """
        if not self.differences:
            return
        path = join(parent.path(), name)
        found = self.differences.get(path)
        if found is not None and found.change is Change.REMOVED and not self._is_dispensable(path):
            self._refuse(path, found)

    def check_name(self, parent: Node, name: bytes) -> None:
        """Check that somebody else has not added a file whose name alone has an effect.

        :raises OSError: EIO.
        """
        if self._state is None or not self._state.differences:
            return
        path = join(parent.path(), name)
        found = self.differences.get(path)
        if found is not None and found.change is not Change.REMOVED and _kind(path) is Kind.SIGNAL:
            self._refuse(path, found)

    def _is_listed(self, path: bytes) -> bool:
        """Return whether a server finds the file at *path* by reading the directory, and not by its name."""
        place = self._manifest.find(path) if self._manifest is not None else None
        is_link = place is not None and place[0].entry(place[1]).kind is NodeKind.LINK
        return is_link or _kind(path) in LISTED_KINDS

    def _is_dispensable(self, path: bytes) -> bool:
        place = self._manifest.find(path) if self._manifest is not None else None
        is_directory = place is not None and place[0].entry(place[1]).kind is NodeKind.DIRECTORY
        return _kind(path + b"/-" if is_directory else path) in DISPENSABLE_KINDS

    def _refuse(self, path: bytes, found: Difference) -> None:
        if path not in self._logged or self._refuses:
            log.error(
                "%s: %s: not as the last unmount left it: %s (HINT: restore it from a backup, or say with 'tdefs "
                "accept' that it is meant)",
                printable_path(path),
                "refused" if self._refuses else "served",
                found,
            )
            self._logged.add(path)
        if self._refuses:
            raise LoggedRefusal(EIO, os.strerror(EIO))

    # --- what is about to change

    def will_change(self, inode: Node, *, goes: bool = False) -> None:
        """Before the length or the header of *inode* changes: note that it is not bound any more.

        :param goes: whether it is emptied, as before a removal.
        :raises OSError: it could not be noted, so nothing may be changed.
        """
        if not inode.bound:
            return
        if self._manifest is not None:
            paths = self._all_paths(inode)
            self._unbind([*paths, *(self._likely_next(paths[0]) if goes and paths else ())])
        inode.bound = False

    def will_come(self, parent: Node, name: bytes) -> None:
        """Note that *name* will be made in *parent*.

        :raises OSError: as :meth:`will_change`.
        """
        if self._manifest is not None:
            self._unbind([join(parent.path(), name)])

    def will_go(self, inode: Node, parent: Node, name: bytes) -> None:
        """Note that *name* in *parent*, which leads to *inode*, will be removed.

        :raises OSError: as :meth:`will_change`.
        """
        if self._manifest is not None:
            path = join(parent.path(), name)
            self._unbind([path, *self._likely_next(path)])
        if len(inode.names) <= 1:
            inode.bound = False

    def will_move(self, inode: Node, other: Node | None, old: bytes, new: bytes, *, exchange: bool) -> None:
        """Note that *inode* will be renamed from *old* to *new*, where *other* is.

        :raises OSError: as :meth:`will_change`.
        """
        if self._manifest is not None:
            paths = [old, new, *self._all_paths(inode)]
            if other is not None and exchange:
                paths += self._all_paths(other)
            if inode.is_directory or (other is not None and other.is_directory):
                paths += [old + b"/", new + b"/"]
            # files in a directory may get names that have an effect
            self._unbind(paths, certain=[new + b"/"] if inode.is_directory and _may_hold_speaking(new) else ())
        inode.bound = False
        if other is not None and exchange:
            other.bound = False

    def _all_paths(self, inode: Node) -> list[bytes]:
        """Return the paths of *inode*, also those that the kernel does not know."""
        several = self._state.tree.several.get(inode.backing, ()) if self._state is not None else ()
        return list(dict.fromkeys([*_paths(inode), *several]))

    def _unbind(self, paths: Iterable[bytes], certain: Sequence[bytes] = ()) -> None:
        """Note durably that *paths* are not bound any more: those that were, and all that are *certain*.

        :raises OSError: as :meth:`will_change`.
        """
        if self._manifest is None or self._state is None or self._journal is None:
            return  # without a journal, nothing can be changed
        wanted = [path for path in dict.fromkeys(paths) if path in certain or self._is_noted_when_it_changes(path)]
        if not wanted:
            return
        if not self._journal.append(wanted):
            self._state.changed.everything = True
            mark_unbound(self._manifest, self._state.changed)
        self._state.unbound.add(wanted)
        for path in wanted:
            mark(self._manifest, path)
            self.differences.pop(path, None)
            if path.endswith(b"/"):
                for below in [one for one in self.differences if one.startswith(path)]:
                    del self.differences[below]

    def _is_noted_when_it_changes(self, path: bytes) -> bool:
        assert self._manifest is not None and self._state is not None  # noqa: S101
        if path.endswith(b"/"):
            return any(one == path[:-1] or one.startswith(path) for one in self._manifest.directories) or any(
                one.startswith(path) for one in self.differences
            )
        if path in self.differences or self._state.binds(path):
            return True
        return self._state.is_speaking(path) and path not in self._state.unbound

    def _likely_next(self, path: bytes) -> list[bytes]:
        """Return the paths that are likely to be removed after *path*, to note them in the same sync.

        These are the rest of a relation; and, once several names of one directory were removed, as many others:
        DROP DATABASE, or DROP SCHEMA with a thousand tables, must not wait a thousand times for the disk.
        """
        assert self._manifest is not None and self._state is not None  # noqa: S101
        directory = path.rpartition(b"/")[0]
        before, count, last = self._going
        now = time.monotonic()
        count = count + 1 if directory == before and now - last < _REMOVAL_SECONDS else 1
        self._going = directory, count, now
        place = self._manifest.find(path)
        if place is None or place[0].unbound[place[1]]:
            return []
        listing, at = place
        found = [join(directory, other) for other in _rest_of_relation(listing, at, path)]
        # WAL goes a few segments at a time, and those that follow are in use
        if count >= _FEW_REMOVALS and _kind(path) is not Kind.WAL:
            most = min(count, _MOST_AT_ONCE)
            following = (*range(at + 1, len(listing.names)), *range(at))
            for other in following:
                if not listing.unbound[other] and listing.kinds[other] == NodeKind.FILE:
                    found.append(join(directory, listing.names[other]))
                    if len(found) >= most:
                        break
        return found


def _rest_of_relation(listing: Listing, at: int, path: bytes) -> list[bytes]:
    """Return the names of the other forks and segments of the relation file at *path*."""
    relation = classify(os.fsdecode(path)).relation
    if relation is None:
        return []
    number = b"%d" % relation.relfilenode
    found = []
    first = at
    while first > 0 and listing.names[first - 1].startswith(number):
        first -= 1
    for name in listing.names[first:]:
        if not name.startswith(number):
            break
        if name[len(number) : len(number) + 1] in (b"", b".", b"_"):
            found.append(name)
    return found


def _may_hold_speaking(directory: bytes) -> bool:
    """Return whether the name alone of a file in *directory* may have an effect."""
    kind = _kind(directory + b"/-")
    return kind in SPEAKING_KINDS or kind in (Kind.OTHER, Kind.STRAY)


def _kind(path: bytes) -> Kind:
    return classify(os.fsdecode(path)).kind


def _paths(inode: Node) -> list[bytes]:
    return [join(parent.path(), name) for parent, name in inode.names]

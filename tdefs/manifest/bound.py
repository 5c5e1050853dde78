"""What the manifest binds during a mount: what differs is refused, and what is about to change is noted before."""

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

# How many names that go in one directory, shortly after one another, make it likely that its others follow.
_FEW_REMOVALS = 8
_REMOVAL_SECONDS = 1.0
_MOST_AT_ONCE = 1024
# so many differences are named in the status
_MOST_TOLD = 100
# and so many in the log: a user who can plant a million files must not fill the disk with it at each mount
_MOST_LOGGED = 10_000


class Node(Protocol):
    """What is asked of a file, directory or link of the tree that is served."""

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

    ``Inode.bound`` says what may be bound, at the cost of one look for each write; paths are made only once.
    """

    def __init__(
        self,
        calls: SystemCalls,
        state: State | None = None,
        *,
        refuses: bool = True,
        left_plain: bool = False,
    ) -> None:
        """:param refuses: whether what differs is refused, or only reported.

        :param left_plain: whether files may be in the clear where the policy encrypts that no manifest knows.
        """
        self._left_plain = left_plain
        #: The policies before the one in use: what these left in the clear, programs may have made.
        self._earlier_policies: list[Policy] = []
        self._calls = calls
        self._state = state
        self._manifest = state.manifest if state is not None else None
        self._refuses = refuses
        self._journal: Journal | None = None
        self._told: set[bytes] = set()
        self._accepted: set[bytes] = set()
        # in which directory names go, how many went, and when the last one did
        self._going: tuple[bytes, int, float] = (b"", 0, 0.0)

    # --- the mount as a whole

    def begin(self) -> None:
        """Begin to serve a volume that may be changed. Raises OSError."""
        if self._state is None or self._manifest is None or self._state.binding.key is None:
            return
        binding = self._state.binding
        self._journal = Journal(self._calls, binding.volume, self._state.binding.key, self._manifest)

    def log(self) -> None:
        """Say in the log what differs, and what the last sessions left unbound."""
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
        """Write the next manifest, once all is on the disk; after a failure the old one and its journal hold."""
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
                "holds still (HINT: see that there is room on the disk)",
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
        """Return for the status what is bound, and what differs; ``None`` without a state."""
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
                for path, found in names[:_MOST_TOLD]
            ),
        )

    def accept(self, paths: Iterable[bytes], *, older_copy: bool) -> int:
        """Have differences be meant from now on; return how many there are. Raises OSError.

        What is accepted is not bound until the next manifest, which has it as it is then.
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
        """By path, what differs."""
        return self._state.differences if self._state is not None else {}

    # --- what is found

    def check(self, inode: Node) -> None:
        """Refuse to open what differs.

        :raises OSError: EIO.
        """
        if self._state is None or not self._state.differences:
            return
        for path in _paths(inode):
            found = self.differences.get(path)
            if found is not None and found.change is not Change.REMOVED:
                self._refuse(path, found)

    def check_below(self, directory: Node) -> None:
        """Refuse to move a directory in which something differs: at another place that could not be seen any more.

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
        """Return whether what is at *path* is refused because it differs."""
        found = self.differences.get(path) if self._refuses else None
        return found is not None and found.change is not Change.REMOVED

    def missing_in(self, directory: Node) -> list[bytes]:
        """Return the names that were removed from *directory* and are to be listed, since a server acts on these.

        Each of them is an error when it is looked at, see :meth:`check_missing`.
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
        """Note whether a file of *size* stored bytes that starts with *head* is the one that was left here."""
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

        A file says of itself whether it is encrypted, and through a mount none gets to such a place in the clear.
        So it is from before the policy, which the manifest knows, or somebody has put it there. Only where the
        policy was changed after a session that did not end cleanly, the manifest cannot know all.
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
        """Note a policy that was in use in this mount, and is exchanged for another one."""
        if all(policy.digest() != known.digest() for known in self._earlier_policies):
            self._earlier_policies.append(policy)

    def _was_left_plain(self, path: bytes) -> bool:
        """Return whether an earlier policy of this mount left new files at *path* in the clear."""
        text = os.fsdecode(path)
        return any(not policy.decide(classify(text), text).encrypted for policy in self._earlier_policies)

    def check_missing(self, parent: Node, name: bytes) -> None:
        """Refuse to say that there is nothing where something was, if PostgreSQL would act on that.

        :raises OSError: EIO.
        """
        if not self.differences:
            return
        path = join(parent.path(), name)
        found = self.differences.get(path)
        if found is not None and found.change is Change.REMOVED and not self._is_dispensable(path):
            self._refuse(path, found)

    def check_name(self, parent: Node, name: bytes) -> None:
        """Refuse to say that there is something where its name alone would have an effect.

        :raises OSError: EIO.
        """
        if self._state is None or not self._state.differences:
            return
        path = join(parent.path(), name)
        found = self.differences.get(path)
        if found is not None and found.change is not Change.REMOVED and _kind(path) is Kind.SIGNAL:
            self._refuse(path, found)

    def _is_listed(self, path: bytes) -> bool:
        """Return whether a server finds what lies at *path* by reading the directory, and not by its name."""
        place = self._manifest.find(path) if self._manifest is not None else None
        is_link = place is not None and place[0].entry(place[1]).kind is NodeKind.LINK
        return is_link or _kind(path) in LISTED_KINDS

    def _is_dispensable(self, path: bytes) -> bool:
        place = self._manifest.find(path) if self._manifest is not None else None
        is_directory = place is not None and place[0].entry(place[1]).kind is NodeKind.DIRECTORY
        return _kind(path + b"/-" if is_directory else path) in DISPENSABLE_KINDS

    def _refuse(self, path: bytes, found: Difference) -> None:
        if path not in self._told or self._refuses:
            log.error(
                "%s: %s: not as the last unmount left it: %s (HINT: restore it from a backup, or say with 'tdefs "
                "accept' that it is meant)",
                printable_path(path),
                "refused" if self._refuses else "served",
                found,
            )
            self._told.add(path)
        if self._refuses:
            raise LoggedRefusal(EIO, os.strerror(EIO))

    # --- what is about to change

    def will_change(self, inode: Node, *, goes: bool = False) -> None:
        """Before the length or the header of *inode* changes: note that it is not bound any more.

        :param goes: whether it is emptied, as a file that is about to be removed is.
        :raises OSError: it could not be noted, so nothing may be changed.
        """
        if not inode.bound:
            return
        if self._manifest is not None:
            paths = self._all_paths(inode)
            self._unbind([*paths, *(self._likely_next(paths[0]) if goes and paths else ())])
        inode.bound = False

    def will_come(self, parent: Node, name: bytes) -> None:
        """Before *name* is made in *parent*. Raises OSError as :meth:`will_change`."""
        if self._manifest is not None:
            self._unbind([join(parent.path(), name)])

    def will_go(self, inode: Node, parent: Node, name: bytes) -> None:
        """Before *name* in *parent*, which leads to *inode*, goes. Raises OSError as :meth:`will_change`."""
        if self._manifest is not None:
            path = join(parent.path(), name)
            self._unbind([path, *self._likely_next(path)])
        if len(inode.names) <= 1:
            inode.bound = False

    def will_move(self, inode: Node, other: Node | None, old: bytes, new: bytes, *, exchange: bool) -> None:
        """Before *inode* is renamed from *old* to *new*, where *other* is. Raises OSError."""
        if self._manifest is not None:
            paths = [old, new, *self._all_paths(inode)]
            if other is not None and exchange:
                paths += self._all_paths(other)
            if inode.is_directory or (other is not None and other.is_directory):
                paths += [old + b"/", new + b"/"]
            # what lies in a directory may say something by the names that it gets now
            self._unbind(paths, certain=[new + b"/"] if inode.is_directory and _may_hold_speaking(new) else ())
        inode.bound = False
        if other is not None and exchange:
            other.bound = False

    def _all_paths(self, inode: Node) -> list[bytes]:
        """Return the paths of *inode*, with those by which the kernel does not know it."""
        several = self._state.tree.several.get(inode.backing, ()) if self._state is not None else ()
        return list(dict.fromkeys([*_paths(inode), *several]))

    def _unbind(self, paths: Iterable[bytes], certain: Sequence[bytes] = ()) -> None:
        """Note durably which of *paths* are not bound any more, if they were, and all that is *certain*.

        Raises OSError.
        """
        if self._manifest is None or self._state is None or self._journal is None:
            return  # where nothing is to be written, nothing can be changed
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
        """Return what is likely to go after *path*, and to be noted along with it, since each note is a sync.

        That is the rest of a relation; and, once several names of one directory went, as many others as went: DROP
        DATABASE, or DROP SCHEMA with a thousand tables, must not wait a thousand times for the disk.
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
    """Return whether what lies in *directory* may say something by its name alone."""
    kind = _kind(directory + b"/-")
    return kind in SPEAKING_KINDS or kind in (Kind.OTHER, Kind.STRAY)


def _kind(path: bytes) -> Kind:
    return classify(os.fsdecode(path)).kind


def _paths(inode: Node) -> list[bytes]:
    return [join(parent.path(), name) for parent, name in inode.names]

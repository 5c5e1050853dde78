"""Taking the next manifest: at a clean unmount, or when somebody accepts differences."""

from __future__ import annotations

import os
from collections.abc import Collection

from tdefs.manifest.comparing import Change, Difference, are_alike, difference
from tdefs.manifest.record import NO_TAG, TAG_BYTES, Entry, Flag, Listing, Manifest, NodeKind
from tdefs.manifest.state import State
from tdefs.manifest.tree import Tag, join, look_through, open_root, tag_in


def take(state: State, *, accepted: Collection[bytes] = (), unclean: bool = False) -> Manifest:
    """Return the manifest of the files in the volume now, with the next counter.

    A file that the old manifest binds, and that did not change through a mount, keeps its entry. So a difference
    stays until it is *accepted*; new ones are added to ``state.differences``. Only new headers are read.

    :param unclean: whether files that changed since the old manifest stay unbound, since they may be half written.
    :raises OSError: the tree cannot be read.
    """
    old = state.manifest
    volume = state.binding.volume

    def tags(fd: int, directory: bytes) -> Tag:
        before = (old.directories.get(directory) if old is not None else None) or Listing()
        known = {name: at for at, name in enumerate(before.names) if not before.unbound[at]}
        for path in accepted:
            above, _, name = path.rpartition(b"/")
            if above == directory:
                known.pop(name, None)

        def tag(name: bytes, length: int) -> bytes:
            at = known.get(name)
            if at is not None and before.lengths[at] == length:
                return before.tags[at * TAG_BYTES : (at + 1) * TAG_BYTES]
            return tag_in(fd, name, length, volume.volume_id)

        return tag

    root = open_root(volume)
    try:
        tree = look_through(root, tags)
    finally:
        os.close(root)
    taken = tree.directories
    touched = {path.rpartition(b"/")[0] for path in (*state.differences, *accepted)}
    for path in list(taken):
        before = old.directories.get(path) if old is not None else None
        if not unclean and path not in touched and (before is None or are_alike(before, taken[path])):
            continue
        taken[path] = _kept(state, path, taken[path], accepted, unclean=unclean)
    if old is not None:
        for path in old.directories.keys() - taken.keys():
            # a directory that is gone, or cannot be read now
            kept = _kept(state, path, Listing(), accepted, unclean=unclean, unread=path in tree.unread)
            if kept.names:
                taken[path] = kept
    flags = Flag.FOLLOWS_LOST if state.lost else Flag(0)
    if unclean and not state.is_complete:
        flags |= Flag.INCOMPLETE
    counter = max(old.counter if old is not None else 0, state.newest) + 1
    return Manifest(volume.volume_id, counter, taken, state.older_than, flags, state.binding.entry or "")


def _bound_entry(manifest: Manifest | None, directory: bytes, name: bytes) -> Entry | None:
    listing = manifest.directories.get(directory) if manifest is not None else None
    if listing is None:
        return None
    at = listing.find(name)
    return listing.entry(at) if at >= 0 and not listing.unbound[at] else None


def _kept(
    state: State,
    directory: bytes,
    now: Listing,
    accepted: Collection[bytes],
    *,
    unclean: bool,
    unread: bool = False,
) -> Listing:
    """Return the listing to write: *now*, with the old entries of files that did not change through a mount."""
    before = state.manifest.directories.get(directory) if state.manifest is not None else None
    changes: dict[bytes, Entry | None] = {}
    for at, name in enumerate(before.names if before is not None else ()):
        path = join(directory, name)
        if path in accepted or before is None or before.unbound[at]:
            continue
        where = now.find(name)
        entry = before.entry(at)
        if where < 0:
            changes[name] = entry
            if not unread:
                state.differences.setdefault(path, Difference(Change.REMOVED))
        elif (found := difference(entry, now.entry(where))) is not None or path in state.differences:
            changes[name] = entry
            if found is not None:
                state.differences.setdefault(path, found)
    for name in now.names:
        path = join(directory, name)
        if path in accepted:
            continue
        found = state.differences.get(path)
        if found is not None and found.change is Change.ADDED:
            changes[name] = None
        elif unclean and name not in changes and _bound_entry(state.manifest, directory, name) is None:
            # but a file whose name alone has an effect must be known
            is_known = path in state.unbound and state.is_speaking(path)
            changes[name] = _without_tag(now.entry(now.find(name))) if is_known else None
    if not changes:
        return now
    entries = dict(now.entries()) | changes
    return Listing.of([(name, *entry) for name, entry in entries.items() if entry is not None])


def _without_tag(entry: Entry) -> Entry:
    return entry._replace(tag=NO_TAG) if entry.kind is NodeKind.FILE else entry

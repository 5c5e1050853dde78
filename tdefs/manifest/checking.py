"""Comparing a whole volume, headers included, with its manifest; it may be mounted."""

from __future__ import annotations

import os
from contextlib import suppress

from tdefs.manifest.comparing import Change, Difference
from tdefs.manifest.record import NO_TAG, PLAIN_TAG, Listing, NodeKind
from tdefs.manifest.state import Binding, State, look
from tdefs.manifest.tree import join, open_directory, open_root, tag_in


def examine(binding: Binding) -> State:
    """Return the state of a volume, with all differences.

    If the volume is mounted, each change is in its journal before it is made, so it does not count as a
    difference. New files are not in the manifest, and are not reported.

    :raises OSError: the data directory cannot be opened.
    """
    state = look(binding)
    if state.manifest is None:
        return state
    _compare_headers(state)
    if state.differences:
        again = look(binding, compares=False)
        if again.manifest is None or again.manifest.counter != state.manifest.counter:
            # it was unmounted meanwhile, and there is a new manifest
            return examine(binding)
        for path in list(state.differences):
            changed_since = path in again.unbound or again.changed.everything
            if changed_since or (state.differences[path].change is Change.ADDED and not again.is_added(path)):
                del state.differences[path]
    return state


def _compare_headers(state: State) -> None:
    assert state.manifest is not None  # noqa: S101 - the caller has seen to it
    root = open_root(state.binding.volume)
    try:
        for path, listing in state.manifest.directories.items():
            with suppress(OSError):  # what is not there, or cannot be read, was reported by its name
                fd = open_directory(root, path)
                try:
                    _compare_listing(state, fd, path, listing)
                finally:
                    os.close(fd)
    finally:
        os.close(root)


def _compare_listing(state: State, fd: int, directory: bytes, listing: Listing) -> None:
    for at, name in enumerate(listing.names):
        entry = listing.entry(at)
        path = join(directory, name)
        if (
            listing.unbound[at]
            or entry.kind is not NodeKind.FILE
            or entry.tag == NO_TAG
            or path in state.differences
        ):
            continue
        tag = tag_in(fd, name, entry.length, state.binding.volume.volume_id)
        # a file in the clear may begin with zeros by now, and have no mark
        if tag != entry.tag and (entry.tag, tag) != (PLAIN_TAG, NO_TAG):
            state.differences[path] = Difference(Change.HEADER, "its header is another one")

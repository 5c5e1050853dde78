"""What is known of a volume's files before it is used: the manifest, the changes since, and the differences."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tdefs.errors import TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.wrapping import derive_state_key
from tdefs.manifest.comparing import SPEAKING_KINDS, Difference, compare
from tdefs.manifest.journal import Changed, read_journal, write_journal
from tdefs.manifest.record import MAX_BYTES, BadManifestError, Flag, Manifest, decode, encode, is_genuine
from tdefs.manifest.tree import Tree, look_through, open_root
from tdefs.policy.paths import classify
from tdefs.private import UntrustedError, own_directory
from tdefs.reserve import with_own_rights
from tdefs.text import printable_path
from tdefs.volume.description import Volume
from tdefs.volume.known import KnownVolumes, known_volumes
from tdefs.volume.registry import recognised

MANIFEST_FILE = "manifest"
OLDER_HINT = (
    "if a backup was restored: 'tdefs accept --older-copy'; else see who can write to the backing directory"
)
#: So many files are named where there are more.
NAMED = 10


@dataclass(frozen=True, slots=True)
class Binding:
    """What is needed to make and check a manifest.

    ``key`` is the state key; None without a keystore that has a history: then nothing is bound. The history of
    ``keystore``, under ``history_key``, keeps the counter. ``entry`` is the keystore's name for the volume; None
    for a copy that it does not know at this place. ``known`` is what the keystore's history says.
    """

    volume: Volume
    key: bytes | None = field(repr=False)
    history_key: bytes | None = field(repr=False)
    keystore: Path
    entry: str | None
    known: KnownVolumes = field(default_factory=KnownVolumes)

    @classmethod
    def of(
        cls, volume: Volume, ring: KeyRing, keystore: Path, entry: str | None, known: KnownVolumes | None = None
    ) -> Binding:
        """Return the binding of *volume*, given its keys, and what the history of its *keystore* knows."""
        key = derive_state_key(ring.history_key) if ring.history_key is not None else None
        return cls(volume, key, ring.history_key, keystore, entry, known or KnownVolumes())


@dataclass(slots=True)
class State:
    """What was found. ``manifest`` is None if nothing is bound; entries that are not valid any more are marked.

    ``unbound`` are the paths of the journal. ``lost`` says what is wrong with the manifest if there must be one
    and there is none. ``older_than`` is the newest counter that the keystore knows if that of the manifest is
    older, else 0.
    """

    binding: Binding
    manifest: Manifest | None = None
    changed: Changed = field(default_factory=Changed)
    unbound: Unbound = field(default_factory=lambda: Unbound(()))
    differences: dict[bytes, Difference] = field(default_factory=dict)
    tree: Tree = field(default_factory=Tree)
    newest: int = 0
    lost: str = ""
    older_than: int = 0

    def know_entry(self) -> None:
        """Find out whether the keystore knows the volume at its place by now, after a ``tdefs volume`` command."""
        binding = self.binding
        if binding.entry is not None or binding.history_key is None:
            return
        try:
            document = load_keystore(binding.keystore).document
            entry = recognised(document, binding.volume)
        except (TdefsError, OSError):
            return
        if entry is not None:
            known = known_volumes(binding.keystore, document, binding.history_key)
            self.binding = replace(binding, entry=entry.id, known=known)
            self.newest = known.counter(entry.id)

    @property
    def is_sound(self) -> bool:
        """Return whether there is nothing to report."""
        return not self.differences and not self.lost and not self.older_than

    @property
    def is_complete(self) -> bool:
        """Return whether all files that the manifest does not know were added by somebody else."""
        return self.manifest is not None and not self.changed.begun and Flag.INCOMPLETE not in self.manifest.flags

    def is_added(self, path: bytes) -> bool:
        """Return whether *path*, which the manifest does not know, was added by somebody else."""
        if path in self.unbound or self.changed.everything:
            return False
        return self.is_complete or self.is_speaking(path)

    def is_speaking(self, path: bytes) -> bool:
        """Return whether PostgreSQL acts on the name alone, so that a new file is always noted."""
        return self.manifest is not None and classify(os.fsdecode(path)).kind in SPEAKING_KINDS

    def binds(self, path: bytes) -> bool:
        """Return whether the manifest says what must be at *path*."""
        place = self.manifest.find(path) if self.manifest is not None else None
        return place is not None and not place[0].unbound[place[1]]

    def describe(self) -> list[str]:
        """Return what to report, one line for each finding."""
        lines = self.describe_volume()
        if self.differences:
            lines.append(f"{counted(len(self.differences))} not as the last unmount left things: {self.named()}")
        return lines

    def describe_volume(self) -> list[str]:
        """Return what to report about the volume as a whole."""
        lines = []
        if self.lost:
            lines.append(f"the manifest of the volume's files {self.lost}: what changed at rest is not known")
        if self.older_than:
            lines.append(
                f"the volume is an older copy: the keystore knows of a newer one, with manifest {self.older_than}"
            )
        return lines

    def named(self) -> str:
        """Return the first paths that differ, with their differences."""
        items = sorted(self.differences.items())
        shown = ", ".join(f"{printable_path(path)}: {found}" for path, found in items[:NAMED])
        return shown + (f", and {len(items) - NAMED} more" if len(items) > NAMED else "")


class Unbound:
    """Paths that a journal names; one that ends in "/" includes all that is below it."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self.paths: set[bytes] = set()
        self.trees: list[bytes] = []
        self.add(paths)

    def add(self, paths: Iterable[bytes]) -> None:
        """Add what a record of the journal names."""
        for path in paths:
            if path.endswith(b"/"):
                self.trees.append(path)
                path = path[:-1]
            self.paths.add(path)

    def __contains__(self, path: bytes) -> bool:
        return path in self.paths or any(path.startswith(tree) for tree in self.trees)

    def __len__(self) -> int:
        return len(self.paths)


def look(binding: Binding, *, compares: bool = True) -> State:
    """Return what is known of a volume that no process changes now; of a mounted one, as much as can be seen.

    Names, kinds and lengths are compared. Headers are compared when a file is opened, see tdefs.manifest.bound.

    :raises OSError: the data directory cannot be opened.
    """
    state = State(binding)
    if binding.key is None:
        return state
    if binding.entry is not None:
        state.newest = binding.known.counter(binding.entry)
    try:
        state.manifest = decode(_read(binding.volume, binding.key), binding.volume.volume_id, binding.key)
        state.lost = _why_of_another(state.manifest, binding)
        if state.lost:
            state.manifest = None
            return state
        state.changed = read_journal(binding.volume, binding.key, state.manifest)
    except FileNotFoundError:
        if state.newest:
            state.lost = f"is missing, and the keystore knows number {state.newest}"
    except (BadManifestError, UntrustedError) as error:
        state.lost = f"cannot be used: {error}"
    except OSError as error:
        state.lost = f"cannot be read: {error.strerror}"
        state.manifest = None
    if state.manifest is None:
        return state
    if binding.entry is None and state.manifest.entry:
        # a copy, which may be old
        state.newest = binding.known.counter(state.manifest.entry)
    if Flag.FOLLOWS_LOST in state.manifest.flags:
        state.lost = "before the last one was missing or altered"
    state.older_than = state.manifest.older_than
    if state.manifest.counter < state.newest:
        state.older_than = max(state.older_than, state.newest)
    state.unbound.add(state.changed.paths)
    mark_unbound(state.manifest, state.changed)
    if compares:
        compare_again(state)
    return state


def compare_again(state: State) -> None:
    """Compare the manifest with the files that are there now.

    :raises OSError: the data directory cannot be opened.
    """
    assert state.manifest is not None  # noqa: S101 - the callers have seen to it
    root = open_root(state.binding.volume)
    try:
        state.tree = look_through(root)
    finally:
        os.close(root)
    state.differences = compare(state.manifest, state.tree, state.is_added)
    state.tree.directories = {}  # they need as much memory as the manifest


def mark_unbound(manifest: Manifest, changed: Changed) -> None:
    """Mark the entries that a journal names."""
    if changed.everything:
        for listing in manifest.directories.values():
            listing.unbound[:] = b"\1" * len(listing.names)
    for path in changed.paths:
        mark(manifest, path)


def mark(manifest: Manifest, path: bytes) -> bool:
    """Mark the entry of *path*, with all below it if it ends in "/"; return whether any of them was bound."""
    was_bound = False
    if path.endswith(b"/"):
        for directory, listing in manifest.directories.items():
            if directory == path[:-1] or directory.startswith(path):
                was_bound |= 0 in listing.unbound
                listing.unbound[:] = b"\1" * len(listing.names)
        path = path[:-1]
    place = manifest.find(path)
    if place is None:
        return was_bound
    listing, at = place
    was_bound |= not listing.unbound[at]
    listing.unbound[at] = 1
    return was_bound


def counted(files: int) -> str:
    """Return "1 file is" or "5 files are"."""
    return "1 file is" if files == 1 else f"{files} files are"


def _why_of_another(manifest: Manifest, binding: Binding) -> str:
    """Return why the manifest belongs to another volume with the same keys; "" if it belongs to this one."""
    if binding.entry in (None, manifest.entry):
        return ""
    if manifest.entry:
        return f"is that of volume {manifest.entry}, and this is {binding.entry}"
    return "was written while the keystore did not know the volume at its place"


def _read(volume: Volume, key: bytes) -> bytes:
    """Return the manifest's bytes.

    :raises OSError: it cannot be read.
    :raises BadManifestError: it was not written with *key*.
    :raises UntrustedError: it is not a file of tdefs's own.
    """
    with (
        own_directory(volume.private, last_link=False) as directory,
        os.fdopen(directory.open(MANIFEST_FILE, os.O_RDONLY), "rb") as file,
    ):
        if not is_genuine(file.fileno(), key):
            raise BadManifestError("it is not as it was written")
        return file.read(MAX_BYTES)


def write_manifest(volume: Volume, manifest: Manifest, key: bytes) -> None:
    """Write a manifest durably, in place of the one before it.

    :raises OSError: the one before may still be there.
    """
    with with_own_rights(), own_directory(volume.private, last_link=False) as directory:
        directory.write_durably(MANIFEST_FILE, encode(manifest, key))


def rebind_manifest(old: Binding, new: Binding) -> None:
    """Write the manifest and the journal of the *old* binding anew for the *new* one.

    Call this if a person with a secret has said that the volume is now another one in its keystore, or has another
    keystore. Files that differ from the manifest still differ.

    :raises OSError: it could not be written.
    """
    state = look(replace(old, entry=None), compares=False)
    if state.manifest is None or new.key is None:
        return
    if (state.manifest.entry, old.key) == (new.entry or "", new.key):
        return
    state.manifest.entry = new.entry or ""
    write_manifest(new.volume, state.manifest, new.key)
    if state.changed.begun:
        write_journal(new.volume, new.key, state.manifest, state.changed)

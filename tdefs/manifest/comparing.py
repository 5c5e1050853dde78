"""The differences between a manifest and the files that are found, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tdefs.format.layout import HEADER_SIZE
from tdefs.manifest.record import Entry, Listing, Manifest, NodeKind
from tdefs.manifest.tree import Tree, join
from tdefs.policy.paths import Kind

#: PostgreSQL finds such a file by its name, and acts on it: a new one is always noted in the journal.
SPEAKING_KINDS = frozenset(
    {
        Kind.SIGNAL,
        Kind.BACKUP,
        Kind.CONFIGURATION,
        Kind.CONTROL,
        Kind.RELATION_MAP,
        Kind.SLRU,
        Kind.TWO_PHASE,
        Kind.VERSION,
    }
)
#: PostgreSQL finds these by reading their directory: a removed one must not look as if it had never existed.
LISTED_KINDS = frozenset({Kind.TWO_PHASE, Kind.REPLICATION})
#: A server makes these anew, or needs none: their absence has no effect.
DISPENSABLE_KINDS = frozenset({Kind.LOG, Kind.STATISTICS, Kind.TEMP, Kind.RELCACHE, Kind.LOCK})


class Change(StrEnum):
    """How a name differs."""

    REMOVED = "removed"
    ADDED = "added"
    EMPTIED = "emptied"
    LENGTH = "other length"
    HEADER = "exchanged"
    KIND = "other kind"
    LINK = "other link"


@dataclass(frozen=True, slots=True)
class Difference:
    """How one path differs from the manifest: ``detail`` says more, and may be empty."""

    change: Change
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.change.value} ({self.detail})" if self.detail else self.change.value


def compare(manifest: Manifest, tree: Tree, is_added: Callable[[bytes], bool]) -> dict[bytes, Difference]:
    """Return the differences by path; entries that are marked as unbound have none.

    :param is_added: returns whether a path that the manifest does not know should not be there.
    """
    found: dict[bytes, Difference] = {}
    for path in manifest.directories.keys() | tree.directories.keys():
        if path in tree.unread:
            continue
        before = manifest.directories.get(path) or Listing()
        now = tree.directories.get(path) or Listing()
        if are_alike(before, now):
            continue
        for at, name in enumerate(before.names):
            if before.unbound[at]:
                continue
            where = now.find(name)
            if where < 0:
                found[join(path, name)] = Difference(Change.REMOVED)
            elif (change := difference(before.entry(at), now.entry(where))) is not None:
                found[join(path, name)] = change
        for name in now.names:
            whole = join(path, name)
            if before.find(name) < 0 and is_added(whole):
                found[whole] = Difference(Change.ADDED)
    return found


def are_alike(before: Listing, now: Listing) -> bool:
    """Return whether nothing differs, as in most directories; False if there are links, whose text may differ."""
    return (
        before.kinds == now.kinds
        and before.lengths == now.lengths
        and before.names == now.names
        and NodeKind.LINK not in now.kinds
    )


def difference(before: Entry, now: Entry) -> Difference | None:
    """Return how *now*, whose header was not read, differs from *before*."""
    if before.kind != now.kind:
        return Difference(Change.KIND, f"it was a {_WORDS[before.kind]}, and is a {_WORDS[now.kind]}")
    if before.kind is NodeKind.LINK:
        return None if before.tag == now.tag else Difference(Change.LINK)
    if before.length == now.length:
        return None
    if before.kind is NodeKind.SPECIAL:
        return Difference(Change.KIND, "another device")
    sizes = f"{before.length} stored bytes before, {now.length} now"
    return Difference(Change.EMPTIED if now.length in (0, HEADER_SIZE) else Change.LENGTH, sizes)


_WORDS = {
    NodeKind.FILE: "file",
    NodeKind.DIRECTORY: "directory",
    NodeKind.LINK: "link",
    NodeKind.SPECIAL: "device, FIFO or socket",
}

"""What a disk holds now, and what of it would survive a power cut.

Everything that changes is kept as a list of versions with the time of each: the present is the last version, and a
sync makes the present durable by forgetting all older ones. A power cut chooses for each thing one of the versions
that are left. Times are the numbers of the changes; offsets and sizes are bytes. Nothing here does I/O.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")

SECTOR = 512
ROOT = 1


class Keeps(Enum):
    """What a power cut leaves of the changes that nobody has synced."""

    #: Nothing.
    NOTHING = "nothing"
    #: Names, sizes and attributes up to a random moment, as a journal would; of data any sectors.
    JOURNAL = "journal"
    #: Any subset, in any order; of data any sectors.
    ANY = "any"


@dataclass
class Attributes:
    """Mode, owner and times of a node; times in nanoseconds."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass
class Versions(Generic[T]):
    """The versions of one value: the first is durable, the last is the present one."""

    history: list[tuple[int, T]]

    @property
    def present(self) -> T:
        return self.history[-1][1]

    def change(self, when: int, value: T) -> None:
        self.history.append((when, value))

    def sync(self, until: int | None = None) -> None:
        """Make the version of a moment durable; without one, the present version."""
        keep = len(self.history) - 1
        if until is not None:
            keep = max((i for i, (when, _) in enumerate(self.history) if when <= until), default=0)
        del self.history[:keep]

    def survive(self, lasts: Callable[[int], bool]) -> None:
        """Become the last version that a power cut leaves."""
        value = next((value for when, value in self.history[:0:-1] if lasts(when)), self.history[0][1])
        self.history = [(0, value)]


@dataclass
class Write:
    """Data that was written."""

    when: int
    offset: int
    data: bytes


@dataclass
class Resize:
    """A size that was set, by truncation or by a write behind the end."""

    when: int
    size: int


class Content:
    """The bytes of a file: what is durable, and the changes since."""

    def __init__(self) -> None:
        self.present = bytearray()
        self._durable = bytearray()
        #: What is not durable.
        self.changes: list[Write | Resize] = []

    def write(self, when: int, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.present):
            self.resize(when, offset + len(data))
        self.present[offset : offset + len(data)] = data
        self.changes.append(Write(when, offset, data))

    def resize(self, when: int, size: int) -> None:
        _set_size(self.present, size)
        self.changes.append(Resize(when, size))

    def sync(self) -> None:
        for change in self.changes:
            if isinstance(change, Resize):
                _set_size(self._durable, change.size)
            else:
                self._durable[change.offset : change.offset + len(change.data)] = change.data
        self.changes.clear()

    def survive(self, dice: Random, keeps: Keeps, until: int, under_way: Write | None) -> None:
        """Become what is left after a power cut.

        Sizes change in their order. A sector holds what was durable or any of the writes since, unless a
        truncation that survives came in between: so a write may be torn at any sector, and overtake another.

        :param under_way: a write of which the disk has done a part
        """
        content = self._durable
        resizes = [change for change in self.changes if isinstance(change, Resize)]
        if keeps is Keeps.NOTHING:
            last = -1
        elif keeps is Keeps.JOURNAL:
            last = max((change.when for change in resizes if change.when <= until), default=-1)
        else:
            last = dice.choice([-1, *(change.when for change in resizes)])
        writes: list[Write] = []
        for change in self.changes:
            if isinstance(change, Write):
                writes.append(change)
            elif change.when <= last:
                if change.size < len(content):
                    writes = [_cut(write, change.size) for write in writes]
                _set_size(content, change.size)
        if keeps is not Keeps.NOTHING:
            self._keep_writes(dice, content, writes)
        if under_way is not None and under_way in writes:
            sectors = _sectors(under_way)
            _keep(content, under_way, sectors[: dice.randrange(len(sectors) + 1)])
        self.present, self.changes = bytearray(content), []

    def _keep_writes(self, dice: Random, content: bytearray, writes: list[Write]) -> None:
        style = dice.choice(("all", "none", "prefix", "sectors"))
        if style == "prefix":
            writes = writes[: dice.randrange(len(writes) + 1)]
        for number, write in enumerate(writes):
            sectors = _sectors(write)
            if style == "none":
                sectors = []
            elif style == "sectors":
                chance = dice.choice((0.1, 0.5, 0.9))
                sectors = [sector for sector in sectors if dice.random() < chance]
            elif style == "prefix" and number == len(writes) - 1:
                sectors = sectors[: dice.randrange(len(sectors) + 1)]
            _keep(content, write, sectors)


def _keep(content: bytearray, write: Write, sectors: list[tuple[int, int]]) -> None:
    for start, end in sectors:
        end = min(end, len(content))
        if start < end:
            content[start:end] = write.data[start - write.offset : end - write.offset]


def _set_size(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def _cut(write: Write, size: int) -> Write:
    return Write(write.when, write.offset, write.data[: max(0, size - write.offset)])


def _sectors(write: Write) -> list[tuple[int, int]]:
    """Where the write begins and ends in each sector that it touches."""
    end = write.offset + len(write.data)
    starts = [write.offset, *range((write.offset // SECTOR + 1) * SECTOR, end, SECTOR)]
    return list(zip(starts, [*starts[1:], end], strict=True)) if write.data else []


@dataclass
class Node:
    """A file, a directory, a link or a socket."""

    number: int
    kind: int
    attributes: Versions[Attributes]
    target: bytes = b""
    content: Content = field(default_factory=Content)
    names: dict[bytes, Versions[int | None]] = field(default_factory=dict)
    links: int = 0

    @property
    def status(self) -> Attributes:
        return self.attributes.present

    def pending(self) -> Iterator[int]:
        """When each change was made that is not durable."""
        yield from (change.when for change in self.content.changes)
        yield from (when for when, _ in self.attributes.history[1:])
        for versions in self.names.values():
            yield from (when for when, _ in versions.history[1:])

    def entries(self) -> dict[bytes, int]:
        """The names of a directory that are there now, with the numbers of their nodes."""
        return {name: one.present for name, one in self.names.items() if one.present is not None}


def _forget_removed_names(node: Node) -> None:
    node.names = {name: one for name, one in node.names.items() if one.history != [(one.history[0][0], None)]}


class Disk:
    """A tree of nodes; the caller asks only for what is possible.

    A file without a name stays: a power cut may bring the name back.
    """

    def __init__(self, *, journal: bool = False) -> None:
        """:param journal: whether any sync makes all names durable, as the journals of ext4 and XFS do; POSIX
        promises the name of a file only after a sync of its directory
        """
        self._journal = journal
        self._clock = 0
        self._last_number = ROOT
        self.nodes: dict[int, Node] = {}
        #: The two places of each rename that is not durable: both change, or neither.
        self._renames: dict[int, list[tuple[int, bytes]]] = {}
        self._add_node(ROOT, stat.S_IFDIR | 0o755, 0, 0).links = 1

    # --- looking

    def find(self, directory: Node, name: bytes) -> Node | None:
        versions = directory.names.get(name)
        number = versions.present if versions else None
        return None if number is None else self.nodes[number]

    @property
    def unsynced(self) -> int:
        """How many changes a power cut may take away."""
        return sum(1 for node in self.nodes.values() for _ in node.pending())

    # --- changing

    def make(self, directory: Node, name: bytes, mode: int, uid: int, gid: int, target: bytes = b"") -> Node:
        self._last_number += 1
        node = self._add_node(self._last_number, mode, uid, gid)
        node.target = target
        self._set_name(self._tick(), directory, name, node)
        return node

    def link(self, node: Node, directory: Node, name: bytes) -> None:
        self._set_name(self._tick(), directory, name, node)

    def unlink(self, directory: Node, name: bytes) -> None:
        self._set_name(self._tick(), directory, name, None)

    def rename(self, old: tuple[Node, bytes], new: tuple[Node, bytes], *, exchange: bool) -> None:
        moved, other = self.find(*old), self.find(*new)
        when = self._tick()
        self._set_name(when, *old, other if exchange else None)
        self._set_name(when, *new, moved)
        self._renames[when] = [(old[0].number, old[1]), (new[0].number, new[1])]

    def write(self, node: Node, offset: int, data: bytes) -> None:
        node.content.write(self._tick(), offset, data)
        node.status.mtime_ns = node.status.ctime_ns = time.time_ns()

    def resize(self, node: Node, size: int) -> None:
        node.content.resize(self._tick(), size)
        node.status.mtime_ns = node.status.ctime_ns = time.time_ns()

    def set_attributes(self, node: Node, attributes: Attributes) -> None:
        node.attributes.change(self._tick(), attributes)

    # --- what lasts

    def sync(self, node: Node) -> None:
        """Make a node durable: content, size, attributes and, of a directory, its names."""
        node.content.sync()
        node.attributes.sync()
        if self._journal:
            self._sync_all_names()
            return
        for name, versions in node.names.items():
            last = versions.history[-1][0]
            self._sync_renames(node.number, name, versions)
            versions.sync(last)
        _forget_removed_names(node)

    def sync_all(self) -> None:
        """Make everything durable."""
        self._renames.clear()
        for node in self.nodes.values():
            self.sync(node)

    def cut_power(self, dice: Random, keeps: Keeps, *, writing: bool = False) -> None:
        """Forget what was not synced, or a part of it.

        :param writing: whether the last write is just under way, and may be torn in any case
        """
        pending = sorted({when for node in self.nodes.values() for when in node.pending()})
        until = dice.choice([0, *pending])
        kept = {when: dice.random() < 0.5 for when in pending}

        writes = (one for node in self.nodes.values() for one in node.content.changes if isinstance(one, Write))
        under_way = max(writes, key=lambda write: write.when, default=None) if writing else None

        def lasts(when: int) -> bool:
            if keeps is Keeps.NOTHING:
                return False
            return when <= until if keeps is Keeps.JOURNAL else kept[when]

        for node in self.nodes.values():
            node.content.survive(dice, keeps, until, under_way)
            node.attributes.survive(lasts)
            for versions in node.names.values():
                versions.survive(lasts)
        self._renames.clear()
        self._remove_unreachable()

    def _sync_all_names(self) -> None:
        self._renames.clear()
        for node in self.nodes.values():
            if any(len(versions.history) > 1 for versions in node.names.values()):
                for versions in node.names.values():
                    versions.sync()
                _forget_removed_names(node)

    def _sync_renames(self, number: int, name: bytes, versions: Versions[int | None]) -> None:
        for when, _ in versions.history[1:]:
            for other, other_name in self._renames.pop(when, []):
                if (other, other_name) != (number, name):
                    self._sync_name_until(other, other_name, when)

    def _sync_name_until(self, number: int, name: bytes, when: int) -> None:
        """Make one name's version of a moment durable, and with it the renames that led there."""
        versions = self.nodes[number].names[name]
        for earlier, _ in versions.history[1:]:
            if earlier <= when:
                for other, other_name in self._renames.pop(earlier, []):
                    if (other, other_name) != (number, name):
                        self._sync_name_until(other, other_name, earlier)
        versions.sync(when)

    # --- helpers

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _add_node(self, number: int, mode: int, uid: int, gid: int) -> Node:
        now = time.time_ns()
        attributes = Attributes(mode, uid, gid, now, now, now)
        node = Node(number, stat.S_IFMT(mode), Versions([(self._clock, attributes)]))
        self.nodes[number] = node
        return node

    def _set_name(self, when: int, directory: Node, name: bytes, node: Node | None) -> None:
        before = self.find(directory, name)
        versions = directory.names.setdefault(name, Versions([(0, None)]))
        versions.change(when, node.number if node else None)
        directory.status.mtime_ns = directory.status.ctime_ns = time.time_ns()
        if node:
            node.links += 1
        if before:
            before.links -= 1

    def _remove_unreachable(self) -> None:
        """Keep what is found from the root on, and count the links anew."""
        for node in self.nodes.values():
            node.links = 0
            node.names = {name: one for name, one in node.names.items() if one.present is not None}
        waiting, reached = [self.nodes[ROOT]], {ROOT}
        while waiting:
            for number in waiting.pop().entries().values():
                node = self.nodes[number]
                node.links += 1
                if number not in reached:
                    reached.add(number)
                    waiting.append(node)
        self.nodes = {number: node for number, node in self.nodes.items() if number in reached}
        self.nodes[ROOT].links = 1

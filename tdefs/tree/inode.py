"""What tdefs knows of one file, directory or other node: its numbers, its names, and how often it is in use."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import NamedTuple, Self

from tdefs.data.data_file import DataFile
from tdefs.data.forms import Form
from tdefs.data.losses import Losses
from tdefs.text import printable_path

ROOT_NUMBER = 1
_STORED_AS_THEMSELVES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class Backing(NamedTuple):
    """Which file in the backing directory an inode is at present: the pair of these numbers."""

    device: int
    number: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the backing of what has *status*."""
        return cls(status.st_dev, status.st_ino)


@dataclass(frozen=True, slots=True)
class LastKnown:
    """What was last known of a file that has no name any more."""

    status: os.stat_result
    length: int
    links: int
    path: bytes


class Inode:
    """One file, directory or other node, as the kernel knows it.

    It is not its backing file: another one can take that one's place (``InodeTable.exchange_backing``), and the
    number, the generation, the names and the counts stay. Its counts are changed by its own methods only.
    """

    __slots__ = (
        "_handles",
        "_last_known",
        "_lookups",
        "backing",
        "bound",
        "bypassed",
        "exchanged",
        "form",
        "generation",
        "losses",
        "names",
        "number",
        "open_file",
        "type",
    )

    def __init__(self, number: int, backing: Backing, file_type: int, generation: int) -> None:
        self.number = number
        #: Distinguishes it from other files that have, or had, the same number; the kernel keeps 32 bits.
        self.generation = generation
        self.backing = backing
        #: The file type bits of the mode (``stat.S_IFMT``).
        self.type = file_type
        #: Where it lies: parent and name, several for hard links, none when it is unlinked.
        self.names: list[tuple[Inode, bytes]] = []
        #: The form of the file, once it was read.
        self.form: Form | None = None
        self.open_file: DataFile | None = None
        #: Whether the manifest may bind it: until its length, header or name changes; see tdefs.manifest.bound.
        self.bound = True
        #: Whether it was written past the kernel's cache, which may hold older bytes since.
        self.bypassed = False
        #: What every sync must report. Its open file shares it.
        self.losses = Losses()
        #: Whether the log has said that something else lies in its place.
        self.exchanged = False
        self._lookups = 0
        self._handles = 0
        self._last_known: LastKnown | None = None

    # --- how often it is in use

    @property
    def lookups(self) -> int:
        """How often the kernel looked it up and did not forget it."""
        return self._lookups

    @property
    def handles(self) -> int:
        """How many handles the kernel holds of it, as a file or as a directory."""
        return self._handles

    @property
    def last_known(self) -> LastKnown | None:
        """What was last known of it; ``None`` as long as it has a name."""
        return self._last_known

    @property
    def is_in_use(self) -> bool:
        """Return whether the kernel knows it, or its file is open."""
        return self._lookups > 0 or self.open_file is not None

    def looked_up(self) -> None:
        """Note that the kernel got it as an answer, and may use its number from now on."""
        self._lookups += 1

    def forgotten(self, lookups: int) -> None:
        """Note that the kernel takes back *lookups*."""
        self._lookups -= lookups
        if self._lookups <= 0:
            self.losses.kernel_forgot()

    def opened(self) -> None:
        """Note that the kernel got one more handle of it."""
        self._handles += 1

    def closed(self) -> None:
        """Note that the kernel has released a handle of it."""
        self._handles -= 1
        if self._handles == 0:
            self.losses.closed_by_all()

    def lost_last_name(self, last_known: LastKnown) -> None:
        """Note that no name is known any more, and what was last known of it."""
        self._last_known = last_known

    def got_name(self) -> None:
        """Note that it has a name again."""
        self._last_known = None

    # --- what it is

    @property
    def is_file(self) -> bool:
        """Return whether this is a regular file."""
        return self.type == stat.S_IFREG

    @property
    def is_directory(self) -> bool:
        """Return whether this is a directory."""
        return self.type == stat.S_IFDIR

    @property
    def is_link(self) -> bool:
        """Return whether this is a symbolic link."""
        return self.type == stat.S_IFLNK

    @property
    def is_planted(self) -> bool:
        """Return whether this is a FIFO, socket or device below: tdefs stores these as files."""
        return self.type not in _STORED_AS_THEMSELVES

    def is_backed_by(self, status: os.stat_result) -> bool:
        """Return whether what has *status* in the backing directory is this inode."""
        return (status.st_dev, status.st_ino) == self.backing and stat.S_IFMT(status.st_mode) == self.type

    # --- where it lies

    def path(self) -> bytes:
        """Return the path relative to the mount point; without a name, the last one."""
        parts: list[bytes] = []
        node = self
        while node.number != ROOT_NUMBER:
            if not node.names:
                parts.append(node.last_known.path if node.last_known is not None else b"(unlinked)")
                break
            node, name = node.names[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def shown(self) -> str:
        """Return the path for the log, marked if the file was removed, since another file may have it by now."""
        return printable_path(self.path() or b".") + (" (removed)" if self.last_known is not None else "")


def path_of(parent: Inode, name: bytes) -> str:
    """Return the path of *name* in *parent* as text; bytes that are not UTF-8 become surrogates."""
    above = parent.path()
    return os.fsdecode(above + b"/" + name if above else name)

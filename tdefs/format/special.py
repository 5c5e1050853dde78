"""FIFOs, sockets and devices: each is stored as a file that is only a header, which says what it is.

So somebody else has made any real FIFO, socket or device in the backing directory.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple

from tdefs.format.header import Binding, Identity

PLANTED_NODE = "a FIFO, socket or device lies in the backing directory, where tdefs makes none"

# the type in a mode is above the 12 bits of rights
_TYPE_SHIFT = 12
_NAMES = {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Special(NamedTuple):
    """A FIFO, socket or device: the type bits of its mode, and the numbers of a device, else 0."""

    type: int
    major: int = 0
    minor: int = 0

    @property
    def name(self) -> str:
        """What it is called in listings."""
        return _NAMES[self.type]

    @property
    def identity(self) -> Identity:
        """What the header of the file that stands for it says."""
        return Identity(Binding.SPECIAL, self.major, self.minor, self.type >> _TYPE_SHIFT)


def special_of(identities: Iterable[Identity]) -> Special | None:
    """Return what a file with these *identities* stands for; ``None`` for a regular file."""
    for identity in identities:
        if identity.binding == Binding.SPECIAL and identity.fork << _TYPE_SHIFT in _NAMES:
            return Special(identity.fork << _TYPE_SHIFT, identity.database, identity.relfilenode)
    return None


def name_of_node(mode: int) -> str:
    """Return what a FIFO, socket or device with this *mode* is called in listings."""
    return _NAMES.get(stat.S_IFMT(mode), "unknown")

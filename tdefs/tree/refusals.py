"""Refusing files that cannot be presented: the log says why, and the program gets an errno."""

from __future__ import annotations

import logging
import os

from tdefs.data.complaints import LoggedRefusal
from tdefs.format.errors import FormatError, PlantedNode
from tdefs.format.special import PLANTED_NODE
from tdefs.text import printable_path
from tdefs.tree.inode import Inode
from tdefs.tree.places import Places

log = logging.getLogger(__name__)


def refusal(places: Places, inode: Inode, error: FormatError) -> LoggedRefusal:
    """Log why *inode* cannot be presented; return the error for the program that opens it."""
    names = ", ".join(printable_path(os.fsencode(path)) for path in places.paths(inode))
    log.error("%s: %s (HINT: %s)", names or inode.shown(), error, error.hint)
    return LoggedRefusal(error.errno, os.strerror(error.errno))


def refuse_planted(places: Places, inode: Inode) -> None:
    """Refuse a FIFO, socket or device that somebody has put into the backing directory.

    :raises OSError: EIO; the log says why.
    """
    if inode.is_planted:
        error = PlantedNode(PLANTED_NODE)
        raise refusal(places, inode, error) from error

"""The virtual files of one mount, and their content."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from functools import partial

import trio

from tdefs.daemon.answers import status_of
from tdefs.daemon.report import report
from tdefs.daemon.served import ServedMount
from tdefs.daemon.status import DaemonStatus
from tdefs.data.workers import in_thread
from tdefs.fuse.virtual import DIRECTORY, Dispatcher, VirtualFile, VirtualFiles
from tdefs.reserve import with_own_rights
from tdefs.text import printable_path

log = logging.getLogger(__name__)


class StatusFile(VirtualFile):
    """What ``tdefs status --json`` prints."""

    name = b"status.json"

    def __init__(self, served: ServedMount) -> None:
        self._served = served
        self._one_at_a_time = trio.Lock()
        # how many asked, how many of them the last report is for, and that report
        self._asked = 0
        self._answered = 0
        self._last = b""

    async def content(self) -> bytes:
        """Return the report on the mount, made in a thread: it reads the header of each file.

        However many ask, one thread is at work, since the mount's reads need the others. All that ask while a
        report is being made get the next one.
        """
        self._asked += 1
        asked = self._asked
        async with self._one_at_a_time:
            if self._answered < asked:
                answered = self._asked
                self._last = await in_thread(partial(self._made, status_of(self._served)))
                self._answered = answered
            return self._last

    def _made(self, status: DaemonStatus) -> bytes:
        request = self._served.request
        with with_own_rights():
            found = report(request.volume, request.mountpoint, status)
        return json.dumps(found, indent=2).encode("ascii") + b"\n"


def operations_of(served: ServedMount) -> Dispatcher:
    """Return the operations of a mount, with its virtual files.

    Through a mount no program can make a file of the name ``.tdefs``. If the volume has one, somebody has put it
    there below the mount.
    """
    with suppress(FileNotFoundError):
        os.stat(DIRECTORY, dir_fd=served.root_fd, follow_symlinks=False)
        place = printable_path(DIRECTORY)
        log.warning(
            'the volume holds a "%s" of its own, which the mount does not show '
            "(HINT: unmount, and move %s out of the volume)",
            place,
            served.request.volume.data / place,
        )
    virtual = VirtualFiles(served.operations, partial(_owner, served), [StatusFile(served)])
    return Dispatcher(served.operations, virtual)


def _owner(served: ServedMount) -> tuple[int, int]:
    """Return user and group of the mount's root."""
    status = os.fstat(served.root_fd)
    return status.st_uid, status.st_gid

"""After a session that did not end cleanly: files whose header never reached the disk.

An encrypted file's header is made durable by the file's first fsync at the latest. Where a power cut came before,
data may be on the disk and the header not; nobody was ever promised a byte of it, and PostgreSQL makes such a file
anew from WAL. It must be empty then, as on a plain disk, and not an error.
"""

from __future__ import annotations

import logging
import os

from tdefs.offline.reader import first_bytes, open_without_links, walk
from tdefs.text import printable_path
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending

log = logging.getLogger(__name__)


def empty_unfinished_files(volume: Volume, believed: Believed) -> list[str]:
    """Empty each file of an unclean volume whose header is all zero; return their paths.

    Afterwards such a file is damage. Where plain files might be made there is nothing to do, since headers are
    made durable at creation there. The caller holds the volume's lock.
    """
    if believed.last.ending is not Ending.UNCLEAN or believed.last.plain_files:
        return []
    emptied = []
    for path, status in walk(volume, on_error=lambda error: log.warning("not looked at: %s", error)):
        try:
            lost = status.st_size > 0 and _lost_its_header(volume, path) and not believed.had_header(path)
            if lost and _emptied(volume, path, status):
                emptied.append(path)
                log.warning("%s: emptied: its header was lost in a crash", printable_path(os.fsencode(path)))
        except OSError as error:
            # what this user cannot read, or the disk does not give, is no reason not to serve the rest
            log.warning("%s: not looked at: %s", printable_path(os.fsencode(path)), error.strerror)
    return emptied


def _emptied(volume: Volume, path: str, status: os.stat_result) -> bool:
    """Empty the file that was seen with *status*; return whether it still lay there, without a header."""
    with open_without_links(volume, path, os.O_RDWR) as fd:
        if not os.path.samestat(status, os.fstat(fd)) or any(first_bytes(fd)):
            return False
        os.ftruncate(fd, 0)
        os.fsync(fd)
    return True


def _lost_its_header(volume: Volume, path: str) -> bool:
    with open_without_links(volume, path) as fd:
        return not any(first_bytes(fd))

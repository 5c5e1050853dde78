"""After a session that did not end cleanly: files whose header never reached the disk.

The first fsync of an encrypted file makes its header durable at the latest. If the power was cut before, data may
be on the disk without the header. Nothing of this data was ever promised to be durable, and PostgreSQL makes such
a file anew from WAL. So the file must be empty, as on a plain disk, and not an error.
"""

from __future__ import annotations

import logging
import os

from tdefs.offline.walking import first_bytes, open_without_links, walk
from tdefs.text import printable_path
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending

log = logging.getLogger(__name__)


def empty_unfinished_files(volume: Volume, believed: Believed) -> list[str]:
    """Empty each file whose header is all zero, if the last session did not end cleanly. Return their paths.

    After this such a file is damage. In a volume with plain files there is nothing to do, since there a header is
    made durable when the file is created. The caller holds the volume's lock.
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
            # a file that cannot be read is no reason not to serve the others
            log.warning("%s: not looked at: %s", printable_path(os.fsencode(path)), error.strerror)
    return emptied


def _emptied(volume: Volume, path: str, status: os.stat_result) -> bool:
    """Empty the file that had *status*. Return whether it was still there, without a header."""
    with open_without_links(volume, path, os.O_RDWR) as fd:
        if not os.path.samestat(status, os.fstat(fd)) or any(first_bytes(fd)):
            return False
        os.ftruncate(fd, 0)
        os.fsync(fd)
    return True


def _lost_its_header(volume: Volume, path: str) -> bool:
    with open_without_links(volume, path) as fd:
        return not any(first_bytes(fd))

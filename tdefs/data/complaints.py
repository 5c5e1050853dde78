"""Failures of the disk below: each is counted, and the log names it and says what to do about it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from errno import EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, EROFS, errorcode

log = logging.getLogger(__name__)


class LoggedRefusal(OSError):
    """A refusal of tdefs's own, not a failure of the disk; the log has said why, and what to do about it."""


# A full disk fails every write: the status counts them, the log names each file once in so many seconds, and no
# more than so many files.
_COMPLAINT_SECONDS = 10
_MOST_COMPLAINTS = 20

#: What to do about a failure, by its errno.
HINTS = {
    ENOSPC: "make room on the file system of the backing directory",
    EDQUOT: "raise the quota of the backing directory's owner",
    EROFS: "the file system of the backing directory is read-only; the kernel's log (dmesg) says why",
    EIO: "the disk below fails; the kernel's log (dmesg) says how",
    EMFILE: "raise the daemon's limit of open files (ulimit -Hn, LimitNOFILE of the unit)",
    ENFILE: "raise the host's limit of open files (sysctl fs.file-max)",
    ENOMEM: "the host is out of memory, or the daemon's own limit is reached (ulimit -v, LimitAS of the unit)",
}


class Complaints:
    """The failures of one mount. The session makes this object, and all parts of the mount report to it."""

    def __init__(self) -> None:
        #: Whether something half made may be left in the backing directory, as after a crash.
        self.left_behind = False
        #: How often each operation failed with an error of ours or the disk's.
        self.counts: Counter[str] = Counter()
        self._recent: dict[tuple[str, str, int | None], float] = {}

    def undo(self, operation: str, subject: str, work: Callable[[], None]) -> None:
        """Undo a step of an *operation* that failed. If *work* fails, too, the next mount has to clean up."""
        try:
            work()
        except OSError as error:
            self.left_behind = True
            self.failed(f"{operation} (undo)", subject, error)

    def failed(self, operation: str, subject: str, error: OSError) -> None:
        """Count a failure of the disk; log it once in a while for each file, operation and kind of failure.

        A refusal that the log has explained already is only counted.
        """
        self.counts[operation] += 1
        if isinstance(error, LoggedRefusal):
            return
        now = time.monotonic()
        recent = {what: when for what, when in self._recent.items() if now - when < _COMPLAINT_SECONDS}
        self._recent = recent
        complaint = operation, subject, error.errno
        if complaint in recent or len(recent) >= _MOST_COMPLAINTS:
            return
        recent[complaint] = now
        code = errorcode.get(error.errno or 0, "no errno")
        hint = HINTS.get(error.errno or 0, "see the kernel's log (dmesg)")
        log.error("%s of %s failed: %s (%s; HINT: %s)", operation, subject, error.strerror, code, hint)
        if len(recent) == _MOST_COMPLAINTS:
            log.error("more failures are counted in tdefs status, and not logged for %d s", _COMPLAINT_SECONDS)

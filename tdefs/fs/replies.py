"""How requests end: whatever goes wrong becomes an errno, is counted and, where it is worth it, logged."""

from __future__ import annotations

import errno
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from pyfuse3 import FUSEError

from tdefs.format.errors import FormatError

log = logging.getLogger(__name__)

# What a plain directory answers every day, too; the rest counts as a failure in the status.
_ORDINARY_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EPERM,
        errno.ESTALE,
        errno.EXDEV,
    }
)

# A full disk fails every write: the status counts them, the log names each file once in so many seconds, and no
# more than so many files.
_COMPLAINT_SECONDS = 10
_MOST_COMPLAINTS = 20

_HINTS = {
    errno.ENOSPC: "make room on the file system of the backing directory",
    errno.EDQUOT: "raise the quota of the backing directory's owner",
    errno.EROFS: "the file system of the backing directory is read-only; the kernel's log (dmesg) says why",
    errno.EIO: "the disk below fails; the kernel's log (dmesg) says how",
    errno.EMFILE: "raise the daemon's limit of open files (ulimit -Hn, LimitNOFILE of the unit)",
    errno.ENFILE: "raise the host's limit of open files (sysctl fs.file-max)",
    errno.ENOMEM: "the host is out of memory",
}

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Replies")


class Replies(ABC):
    """Counts the requests of one mount, and says what went wrong with them."""

    def __init__(self) -> None:
        super().__init__()
        #: How often each operation was requested, and how often it failed with an error of ours or the disk's.
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._complained: dict[tuple[str, str, int | None], float] = {}

    @abstractmethod
    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        """Return for the log which file, or directory, a request with these arguments was about."""

    def failed(self, operation: str, arguments: Sequence[object], error: Exception) -> int:
        """Count and log a failed request; return the errno to answer with."""
        if isinstance(error, OverflowError):
            # an offset or a length that, with the header before it, no file system has
            return errno.EFBIG
        if isinstance(error, OSError):
            if error.errno not in _ORDINARY_ERRORS:
                self.failures[operation] += 1
                if not isinstance(error.__cause__, FormatError):  # of that the log has said more
                    self._complain(operation, arguments, error)
            return error.errno or errno.EIO
        self.failures[operation] += 1
        if isinstance(error, FormatError):
            log.error("%s: %s (HINT: %s)", self.subject(operation, arguments), error, error.hint)
        else:
            log.error("unexpected error in %s", operation, exc_info=error)
        return errno.EIO

    def _complain(self, operation: str, arguments: Sequence[object], error: OSError) -> None:
        """Log that the disk failed a request: once in a while for each file, operation and kind of failure."""
        now = time.monotonic()
        recent = {what: when for what, when in self._complained.items() if now - when < _COMPLAINT_SECONDS}
        self._complained = recent
        complaint = operation, self.subject(operation, arguments), error.errno
        if complaint in recent or len(recent) >= _MOST_COMPLAINTS:
            return
        recent[complaint] = now
        code = errno.errorcode.get(error.errno or 0, "no errno")
        hint = _HINTS.get(error.errno or 0, "see the kernel's log (dmesg)")
        log.error("%s of %s failed: %s (%s; HINT: %s)", operation, complaint[1], error.strerror, code, hint)
        if len(recent) == _MOST_COMPLAINTS:
            log.error("more failures are counted in tdefs status, and not logged for %d s", _COMPLAINT_SECONDS)


def reply(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Turn whatever goes wrong in a request into an errno: any other exception would end the mount."""
    name = method.__name__

    @wraps(method)
    async def translated(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests[name] += 1
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:
            try:
                number = self.failed(name, args, error)
            except Exception:
                log.exception("unexpected error while reporting one in %s", name)
                number = errno.EIO
            raise FUSEError(number) from None

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", translated)

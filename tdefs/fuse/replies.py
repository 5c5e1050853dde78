"""How requests end: each is counted and measured; an error becomes an errno, is counted and logged."""

from __future__ import annotations

import errno
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from time import perf_counter_ns
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from pyfuse3 import FUSEError

from tdefs.data.complaints import Complaints, LoggedRefusal
from tdefs.errors import errno_of
from tdefs.format.errors import FormatError
from tdefs.fuse.measured import Measured

log = logging.getLogger(__name__)

# Errors that a plain directory gives every day, too; all others count as failures in the status.
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

# Requests about an inode, whose name the kernel has resolved before. After ENOENT the kernel passes the error to
# the program; after ESTALE it looks the name up again.
_BY_NUMBER = frozenset({"getattr", "link", "open", "opendir", "readlink", "setattr"})

# Requests that move bytes; the function returns how many, from the result of the operation.
_BYTES: dict[str, Callable[[Any], int]] = {"read": len, "write": int}

# Operations that may be repeated after a failure: they have undone their changes, or make the same ones again.
_REPEATABLE = frozenset({"create", "link", "mkdir", "mknod", "open", "rename", "setattr", "symlink"})

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Replies")


class Replies(ABC):
    """Counts the requests of one mount, and reports what went wrong with them."""

    def __init__(self, complaints: Complaints) -> None:
        super().__init__()
        #: By operation, what its requests cost.
        self.measured: defaultdict[str, Measured] = defaultdict(Measured)
        self.complaints = complaints

    @property
    def requests(self) -> Counter[str]:
        """Return how often each operation was requested."""
        return Counter({name: measured.count for name, measured in self.measured.items()})

    @abstractmethod
    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        """Return for the log the file or directory of a request with these arguments."""

    async def more_room(self, error: OSError) -> bool:
        """Return whether there is more room since a request failed with *error*, a lack of room."""
        return False

    def failed(self, operation: str, arguments: Sequence[object], error: Exception) -> int:
        """Count and log a failed request; return the errno to answer with."""
        if isinstance(error, OverflowError):
            return errno_of(error)
        if isinstance(error, FileNotFoundError) and operation in _BY_NUMBER:
            return errno.ESTALE
        if isinstance(error, MemoryError):
            error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if isinstance(error, OSError):
            if isinstance(error, LoggedRefusal) or error.errno not in _ORDINARY_ERRORS:
                self.complaints.failed(operation, self.subject(operation, arguments), error)
            return errno_of(error)
        self.complaints.counts[operation] += 1
        if isinstance(error, FormatError):
            log.error("%s: %s (HINT: %s)", self.subject(operation, arguments), error, error.hint)
        else:
            log.error("unexpected error in %s", operation, exc_info=error)
        return errno_of(error)


def reply(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Count and measure the requests of an operation, and turn each error into an errno.

    Any other exception would end the mount.
    """
    name = method.__name__
    bytes_of = _BYTES.get(name)

    @wraps(method)
    async def translated(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        measured = self.measured[name]
        measured.count += 1
        begun = perf_counter_ns()
        try:
            try:
                result = await method(self, *args, **kwargs)
            except OSError as error:
                if name not in _REPEATABLE or not await self.more_room(error):
                    raise
                result = await method(self, *args, **kwargs)
            if bytes_of is not None:
                measured.bytes += bytes_of(result)
            return result
        except FUSEError:
            raise
        except Exception as error:
            try:
                number = self.failed(name, args, error)
            except Exception:
                log.exception("unexpected error while reporting one in %s", name)
                number = errno.EIO
            raise FUSEError(number) from None
        finally:
            measured.took(perf_counter_ns() - begun)

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", translated)

"""Data of a file that may be lost: how long this is reported, by tdefs or by the kernel.

The kernel reports an error of a write or a sync of the backing file once, and then forgets it. A file with a loss
fails every sync until all programs that might rely on the lost data have closed it, and until the loss was
reported to one of them.
"""

from __future__ import annotations

import os
from enum import Enum, auto
from threading import Lock


class Loss(Enum):
    """Whether data may be lost, and which program has learned of it."""

    #: Nothing is lost.
    NONE = auto()
    #: No program has learned of it. It outlives the closing of the file.
    UNREPORTED = auto()
    #: A program got the error as an answer. Every sync fails until all have closed the file.
    REPORTED = auto()
    #: The kernel got the error as the answer to a write-back. It reports it to the next program that syncs.
    KERNEL_REPORTS = auto()
    #: As before, and all have closed the file since. The kernel asks for no sync until it has reported the error
    #: itself, to a program that opens the file again; so a sync that it asks for is a later one.
    KERNEL_REPORTS_ASLEEP = auto()
    #: The kernel has reported it to a program that opened the file again.
    KERNEL_REPORTED = auto()


class Event(Enum):
    """What changes the state of a loss."""

    #: Something failed, and no program gets the error as an answer.
    FAILED_UNNOTICED = auto()
    #: Something failed, and the program that asked for it gets the error as the answer.
    FAILED_ANSWERED = auto()
    #: Something failed, and the kernel gets the error as the answer to a write-back.
    FAILED_WRITE_BACK = auto()
    #: A sync that the kernel asks for.
    SYNC_OF_KERNEL = auto()
    #: A sync that belongs to a write (O_DSYNC), or of a directory.
    SYNC_OF_WRITE = auto()
    #: All programs have closed the file.
    CLOSED_BY_ALL = auto()
    #: The kernel has forgotten the file, and with it what it had to report.
    FORGOTTEN_BY_KERNEL = auto()


_FAILED = {
    Event.FAILED_UNNOTICED: Loss.UNREPORTED,
    Event.FAILED_ANSWERED: Loss.REPORTED,
    Event.FAILED_WRITE_BACK: Loss.KERNEL_REPORTS,
}
_REPORTED_BY_SYNC = {Event.SYNC_OF_KERNEL: Loss.REPORTED, Event.SYNC_OF_WRITE: Loss.REPORTED}

#: The state that follows each state upon each event.
NEXT: dict[Loss, dict[Event, Loss]] = {
    Loss.NONE: {
        **_FAILED,
        Event.SYNC_OF_KERNEL: Loss.NONE,
        Event.SYNC_OF_WRITE: Loss.NONE,
        Event.CLOSED_BY_ALL: Loss.NONE,
        Event.FORGOTTEN_BY_KERNEL: Loss.NONE,
    },
    Loss.UNREPORTED: {
        # a later failure does not cover one that no program has learned of
        **dict.fromkeys(_FAILED, Loss.UNREPORTED),
        **_REPORTED_BY_SYNC,
        Event.CLOSED_BY_ALL: Loss.UNREPORTED,
        Event.FORGOTTEN_BY_KERNEL: Loss.UNREPORTED,
    },
    Loss.REPORTED: {
        **_FAILED,
        **_REPORTED_BY_SYNC,
        Event.CLOSED_BY_ALL: Loss.NONE,
        Event.FORGOTTEN_BY_KERNEL: Loss.REPORTED,
    },
    Loss.KERNEL_REPORTS: {
        **_FAILED,
        **_REPORTED_BY_SYNC,
        Event.CLOSED_BY_ALL: Loss.KERNEL_REPORTS_ASLEEP,
        Event.FORGOTTEN_BY_KERNEL: Loss.UNREPORTED,
    },
    Loss.KERNEL_REPORTS_ASLEEP: {
        **_FAILED,
        Event.SYNC_OF_KERNEL: Loss.KERNEL_REPORTED,
        Event.SYNC_OF_WRITE: Loss.REPORTED,
        Event.CLOSED_BY_ALL: Loss.KERNEL_REPORTS_ASLEEP,
        Event.FORGOTTEN_BY_KERNEL: Loss.UNREPORTED,
    },
    Loss.KERNEL_REPORTED: {
        **_FAILED,
        Event.SYNC_OF_KERNEL: Loss.KERNEL_REPORTED,
        Event.SYNC_OF_WRITE: Loss.REPORTED,
        Event.CLOSED_BY_ALL: Loss.NONE,
        Event.FORGOTTEN_BY_KERNEL: Loss.REPORTED,
    },
}


class Losses:
    """The loss of one file or directory. It outlives the open file, and the kernel's knowledge of the inode."""

    __slots__ = ("_errno", "_lock", "state")

    def __init__(self) -> None:
        self.state = Loss.NONE
        self._errno = 0
        self._lock = Lock()

    def __bool__(self) -> bool:
        return self.state is not Loss.NONE

    def failed(self, errno: int, event: Event) -> None:
        """Note a failure with *errno*; *event* is one of the FAILED ones."""
        with self._lock:
            self._errno = errno
            self.state = NEXT[self.state][event]

    def report(self, event: Event) -> None:
        """Raise the error of the loss, if there is one that the kernel does not report itself.

        :param event: which sync this is for: SYNC_OF_KERNEL or SYNC_OF_WRITE.
        :raises OSError: with the errno of the failure.
        """
        if self.state is Loss.NONE:
            return
        with self._lock:
            self.state = NEXT[self.state][event]
            if self.state is Loss.REPORTED:
                raise OSError(self._errno, os.strerror(self._errno))

    def closed_by_all(self) -> None:
        """Note that all programs have closed the file."""
        if self.state is Loss.NONE:
            return
        with self._lock:
            self.state = NEXT[self.state][Event.CLOSED_BY_ALL]

    def kernel_forgot(self) -> None:
        """Note that the kernel has forgotten the file, and with it what it had to report."""
        if self.state is Loss.NONE:
            return
        with self._lock:
            self.state = NEXT[self.state][Event.FORGOTTEN_BY_KERNEL]

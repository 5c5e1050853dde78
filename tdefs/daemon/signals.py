"""The signals that end a mount: none kills the daemon. After the first, it unmounts once the mount is free."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import trio

from tdefs.data.workers import workers
from tdefs.errors import TdefsError
from tdefs.mounts.known import devices_at, unmount

log = logging.getLogger(__name__)

_RETRY_SECONDS = 2
# How often the log says why a daemon that got a signal to end goes on.
_REMINDER_SECONDS = 60


async def reload_on_hangup(reload: Callable[[], Awaitable[None]]) -> None:
    """Call *reload* for each SIGHUP, until cancelled: for a daemon in the background, which has no terminal.

    Before and after, SIGHUP is ignored, as since the daemon went to the background.
    """
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            log.info("received SIGHUP: reading the policy again")
            await reload()


class EndSignals:
    """SIGTERM and SIGINT, and SIGHUP in the foreground, where it means that the terminal is gone.

    From the beginning of the ``with`` block to its end they do not kill the process. A daemon that dies between
    mounting and listening would leave a dead mount. One that dies of a second signal while it writes everything
    out would leave an unclean end.
    """

    def __init__(self) -> None:
        self._numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            self._numbers.remove(signal.SIGHUP)
        #: Signals that came before the task listened, or after.
        self._unheard: list[int] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._numbers:
            self._handlers[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._unheard.append(number)

    async def unmount_on_first(
        self, mountpoint: Path, device: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wait for a signal, then unmount *device* from *mountpoint*, as soon as that is possible.

        While a program uses the mount, it is served: to take it away under a running PostgreSQL would lose the
        writes that the kernel has not passed on yet.
        """
        with trio.open_signal_receiver(*self._numbers) as signals:
            task_status.started()
            number = self._unheard[0] if self._unheard else await anext(aiter(signals))
            log.info("received %s: unmounting", signal.Signals(number).name)
            remind_at = trio.current_time()
            while reason := await _tried(mountpoint, device):
                if trio.current_time() >= remind_at:
                    remind_at = trio.current_time() + _REMINDER_SECONDS
                    log.warning("cannot end yet: %s; trying again every %d s", reason, _RETRY_SECONDS)
                await trio.sleep(_RETRY_SECONDS)


async def _tried(mountpoint: Path, device: str) -> str:
    """Try to unmount, in a thread, since the kernel may ask the mount meanwhile; return why it is not possible."""
    try:
        return await workers.run(partial(_unmount, mountpoint, device))
    except Exception as error:
        return str(error) or type(error).__name__


def _unmount(mountpoint: Path, device: str) -> str:
    """Try to unmount; return why that is not possible now, "" if it was."""
    devices = devices_at(mountpoint)
    if device not in devices:
        # umount -l; another file system may lie there now, which must not be unmounted
        return f'"{mountpoint}" was detached while in use, and is served until the last file in it is closed'
    if devices[-1] != device:
        return f'another file system is mounted over "{mountpoint}"'
    try:
        unmount(mountpoint)
    except TdefsError as error:
        return f"{error.message} ({error.detail})"
    except OSError as error:
        return str(error)
    return ""

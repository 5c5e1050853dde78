"""The daemon's end of the watchdog: it starts that process and answers it. The watchdog itself is watchdog.py."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from tdefs.daemon import watchdog
from tdefs.mounts.known import abort_file

log = logging.getLogger(__name__)

_PIECE = 4096
# The pause before another watchdog is started in place of one that has ended.
_AGAIN_SECONDS = 5
# It ends when the daemon hangs up; it is killed after so long.
_END_SECONDS = 5


class Watched:
    """This process, watched by another one."""

    def __init__(self, seconds: int, device: str, mountpoint: Path, log_file: Path | None) -> None:
        """:param seconds: how long the daemon may be silent.

        :param device: the mount's, ``MAJOR:MINOR``.
        """
        self._seconds = seconds
        self._device = device
        self._mountpoint = mountpoint
        self._log_file = log_file
        self.patience: int | None = None
        """The seconds, while a watchdog runs."""

    async def stay(self) -> None:
        """Keep a watchdog running until cancelled; if it was killed, start another one.

        After the mount the daemon may take long to write everything out: then there is no watchdog.
        """
        complained = False
        while True:
            try:
                with self._watchdog() as link:
                    self.patience = self._seconds
                    log.info("watched: frozen is what has not answered for %d s", self._seconds)
                    complained = False
                    await _answer(link)
                log.warning("the watchdog has ended; another one is started in %d s", _AGAIN_SECONDS)
            except OSError as error:
                if not complained:
                    log.warning("no watchdog, so a frozen daemon would stay: %s", error)
                complained = True
            finally:
                self.patience = None
            await trio.sleep(_AGAIN_SECONDS)

    @contextmanager
    def _watchdog(self) -> Iterator[trio.socket.SocketType]:
        """Start the watchdog; at the end hang up, and wait until it has ended.

        :raises OSError: it cannot be started, or would not be able to abort the connection.
        """
        ours, its = socket.socketpair()
        with trio.socket.from_stdlib_socket(ours) as link:
            with its:
                process = self._start(its)
            try:
                yield link
            finally:
                link.close()
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, its: socket.socket) -> subprocess.Popen[bytes]:
        # another connection may get the number later; the open file stays that of this one
        abort = os.open(abort_file(self._device), os.O_WRONLY | os.O_CLOEXEC)
        try:
            itself = os.pidfd_open(os.getpid())
            try:
                numbers = (self._seconds, os.getpid(), itself, abort)
                return subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", watchdog.__file__),
                        *map(str, numbers),
                        *(os.fspath(self._mountpoint), os.fspath(self._log_file or "")),
                    ],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    # until the mount serves, standard error is that of the process that called 'tdefs mount'
                    stderr=subprocess.DEVNULL if self._log_file else None,
                    pass_fds=(itself, abort),
                    cwd="/",
                    start_new_session=True,  # Ctrl-C in a terminal is for the daemon alone
                )
            finally:
                os.close(itself)
        finally:
            os.close(abort)


async def _answer(link: trio.socket.SocketType) -> None:
    """Answer until the other end hangs up."""
    while asked := await link.recv(_PIECE):
        await link.send(asked)

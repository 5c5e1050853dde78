"""Serving a mount: the tasks beside the request loop, and finding out how the mount has ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from tdefs.daemon.answers import Answers
from tdefs.daemon.control_server import AnswerTable, serve_control
from tdefs.daemon.policy_reload import PolicyReload
from tdefs.daemon.request import MountRequest
from tdefs.daemon.served import ServedMount
from tdefs.daemon.signals import EndSignals, reload_on_hangup
from tdefs.daemon.watched import Watched
from tdefs.data.read_only import control_places
from tdefs.fuse.loop import Connection
from tdefs.manifest import accepting
from tdefs.mounts.known import devices_at, is_listed, is_living, raise_kernel_limits
from tdefs.private import UntrustedError, own_place
from tdefs.reserve import with_own_rights

log = logging.getLogger(__name__)

# Between attempts to serve the control socket, at most.
_MOST_PAUSE_SECONDS = 64


async def serve(
    served: ServedMount, connection: Connection, signals: EndSignals, ready: Callable[[], None]
) -> None:
    """Serve requests until the kernel says that the mount is gone.

    However serving ends, no program and no task waits for an answer of the mount afterwards.

    :param ready: is called once the mount serves.
    """
    request = served.request
    served.watched = watched = Watched(request.watchdog, served.device, request.mountpoint, request.log_file)
    policy = PolicyReload(served)
    answers = Answers(served, policy)

    def note_end() -> None:
        served.ended = _is_unmounted(served)

    async with trio.open_nursery() as nursery:
        try:
            # first, since the daemon may be asked to end as soon as the mount serves
            await nursery.start(signals.unmount_on_first, request.mountpoint, served.device)
            nursery.start_soon(_announce, served, ready)
            if request.watchdog and served.device:
                nursery.start_soon(watched.stay)
            if request.background:
                nursery.start_soon(reload_on_hangup, policy.run_and_log)
            if (control := _control_socket(request)) is not None:
                table = {
                    "status": answers.status,
                    "keys": answers.keys,
                    "policy": answers.policy,
                    accepting.REQUEST: answers.accept,
                }
                nursery.start_soon(_control, control, table)
            await connection.serve(note_end)
        finally:
            connection.cut()
        nursery.cancel_scope.cancel()


def _is_unmounted(served: ServedMount) -> bool:
    """Return whether the connection has ended because the file system was unmounted everywhere, not by an abort.

    The kernel reports the same in both cases (ENODEV). It passes on the writes to a file at the latest when the
    file is closed, and keeps the file system as long as a file is open. So nothing is lost if the file system does
    not exist any more, or if nothing was open. Call this at once: an aborted file system goes away as soon as no
    program has a file open in it.
    """
    if not served.device:
        return True
    if is_listed(served.device, served.request.volume.backing):
        return False
    # the kernel drops the last releases unsent when it unmounts
    return served.operations.open_handles == 0 or not is_living(served.device)


def _control_socket(request: MountRequest) -> Path | None:
    """Return the place of the control socket; ``None``, after a line in the log, if there is no place for it."""
    if not request.read_only:
        return request.volume.control_socket
    try:
        path = control_places(request.volume.backing)[0]
        with with_own_rights(), own_place(path.parent) as above, suppress(FileExistsError):
            os.mkdir(path.parent.name, 0o755, dir_fd=above.fd)
    except (OSError, UntrustedError) as error:
        log.warning("no control socket, so 'tdefs status' will know less: %s", error)
        return None
    return path


async def _announce(served: ServedMount, ready: Callable[[], None]) -> None:
    """Report that the mount serves, once it does."""
    await served.operations.serves.wait()
    if served.device not in devices_at(served.request.mountpoint):
        return  # unmounted already
    if not raise_kernel_limits(served.device):
        log.info("this user may not raise the kernel's read-ahead and dirty limits of the mount")
    ready()
    served.served = True


async def _control(path: Path, answers: AnswerTable) -> None:
    """Serve the control socket. No error in it ends the mount, not even a lack of memory."""
    pause = 1
    while True:
        try:
            return await serve_control(path, answers)
        except Exception:
            log.exception("unexpected error at the control socket: it begins anew in %d s", pause)
            await trio.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)

"""One mount from its beginning to its end: mounting, serving, and writing everything out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import trio

from tdefs.daemon.mounting import mount, take_away
from tdefs.daemon.records import begin_session, end_session, first_cause, in_one_line, write_manifest
from tdefs.daemon.request import MountRequest
from tdefs.daemon.served import ServedMount
from tdefs.daemon.serving import serve
from tdefs.daemon.signals import EndSignals
from tdefs.data.calls import SystemCalls
from tdefs.data.workers import workers
from tdefs.errors import Exit, TdefsError
from tdefs.fuse.loop import Connection
from tdefs.keys.hierarchy import KeyRing
from tdefs.reserve import without_reserve
from tdefs.volume.session_record import Ending

log = logging.getLogger(__name__)


def run_session(request: MountRequest, ring: KeyRing, calls: SystemCalls, ready: Callable[[], None]) -> None:
    """Mount, call *ready* once the mount serves, and return when it was unmounted and all is on disk.

    The caller holds the volume's lock.

    :raises TdefsError: MOUNT_FAILED, or an error of *ready*, with nothing mounted; MOUNT_LOST if a mount that
        served has ended without being unmounted.
    """
    os.umask(0)  # the kernel has applied the caller's umask already
    served = ServedMount.of(request, ring, calls)
    served.bound.log()
    if request.believed.last.ending is not Ending.CLEAN:
        # a crash from now on must not undo what is found now, above all no names
        calls.syncfs("session:recover", served.root_fd)
    failure: Exception | None = None
    with EndSignals() as signals:
        connection = _begin(served)
        try:
            log.info("mounted %s at %s", request.volume.backing, request.mountpoint)
            with without_reserve(served.root_fd) as served.reserve_spared:
                workers.start()  # after the mount, for which libfuse may need a process
                trio.run(serve, served, connection, signals, ready)
        except Exception as error:
            failure = error
            log.exception("the mount ended unexpectedly")
        finally:
            _end(served, connection)
    _judge(served, failure)
    log.info("unmounted %s", request.mountpoint)


def _begin(served: ServedMount) -> Connection:
    """Write down that the volume is in use, and mount it.

    :raises TdefsError: as :func:`mount` and :func:`begin_session`; nothing is mounted then.
    """
    request = served.request
    try:
        if not request.read_only:
            begin_session(request)
        return mount(served)
    except Exception:
        served.bound.close()
        if not request.read_only and request.believed.last.ending is not Ending.UNCLEAN:
            end_session(request)
        raise


def _end(served: ServedMount, connection: Connection) -> None:
    """Close everything, write it to the disk, and write down how the session ended."""
    request, complaints = served.request, served.complaints
    connection.close()
    workers.stop()
    if not served.served:
        take_away(request)
    served.operations.close()
    try:
        served.calls.syncfs("session:sync", served.root_fd)
    except OSError as error:
        complaints.failed("the last sync", str(request.mountpoint), error)
        complaints.left_behind = True
    if served.ended and not complaints.left_behind and not request.read_only:
        write_manifest(served.bound)
        end_session(request)
    else:
        served.bound.close()
    served.close()


def _judge(served: ServedMount, failure: Exception | None) -> None:
    """Check that the mount served, and was not lost.

    :param failure: the error that has ended the serving, if it was not an unmount.
    :raises TdefsError: MOUNT_FAILED, the one in *failure*, or MOUNT_LOST.
    """
    mountpoint = served.request.mountpoint
    if not served.served:
        raise _not_begun(served, failure)
    if not served.ended:
        log.error("the mount at %s was lost: what the kernel had not passed on is lost", mountpoint)
        raise TdefsError(
            Exit.MOUNT_LOST,
            f'the mount at "{mountpoint}" was lost',
            detail="its connection with the kernel was aborted" if failure is None else in_one_line(failure),
            hint="stop what used it, then mount the volume again: PostgreSQL recovers as after a crash",
        )


def _not_begun(served: ServedMount, failure: Exception | None) -> TdefsError:
    """Return the error for the user of a mount that never served."""
    mountpoint = served.request.mountpoint
    if failure is None:
        return TdefsError(Exit.MOUNT_FAILED, f'"{mountpoint}" was unmounted before it served')
    cause = first_cause(failure)
    if isinstance(cause, TdefsError):
        return cause
    return TdefsError(
        Exit.MOUNT_FAILED,
        f'could not serve "{mountpoint}"',
        detail=in_one_line(failure),
        hint="see the daemon's log",
    )

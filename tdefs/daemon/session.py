"""One mount from its beginning to its end: mounting, serving, signals, and writing everything out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from tdefs.daemon.control_server import Answers, serve_control
from tdefs.daemon.reserve import with_own_rights, without_reserve
from tdefs.daemon.signals import EndSignals
from tdefs.daemon.watched import Watched
from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import Complaints
from tdefs.data.forms import FileForms
from tdefs.data.read_only import control_places
from tdefs.data.staging import DIRECTORY as STAGING_DIRECTORY
from tdefs.data.staging import Staging
from tdefs.data.workers import workers
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.format.pages import PythonPageCipher, page_cipher
from tdefs.fuse.loop import Connection
from tdefs.fuse.operations import FuseOperations
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.entries import ACTIVE, REVOKED
from tdefs.keys.ring_message import RingRefusedError, open_ring
from tdefs.manifest import accepting
from tdefs.manifest.bound import Bound
from tdefs.manifest.journal import JOURNAL_FILE
from tdefs.manifest.state import State
from tdefs.mounts.failure import why_not_mounted
from tdefs.mounts.known import detach_dead, devices_at, is_listed, is_living, raise_kernel_limits, tdefs_mounts
from tdefs.mounts.place import mount_place
from tdefs.mounts.table import source_name
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.model import Policy
from tdefs.private import UntrustedError, own_place
from tdefs.text import printable
from tdefs.tree.files import Files
from tdefs.tree.tree import Tree
from tdefs.volume.backing import open_data
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import SESSION_FILE, Ending, SessionBook

log = logging.getLogger(__name__)

# Between attempts to serve the control socket, at most.
_MOST_PAUSE_SECONDS = 64


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where, and how."""

    volume: Volume
    believed: Believed
    """What the keystore says that it may do, and how its last session ended."""
    book: SessionBook
    keystore: Path
    policy: Path | None
    mountpoint: Path
    options: tuple[str, ...]
    memory_locked: bool
    log_file: Path | None
    watchdog: int = 0
    """Seconds after which a frozen daemon is ended; 0: never."""
    read_only: bool = False
    """Whether nothing in the backing directory may be changed, by whoever."""
    state: State | None = None
    """What is known of the volume's files; None: nothing is bound."""
    refuses_tampering: bool = True
    """Whether a file that differs from the manifest is refused, or only reported."""


def fuse_options(request: MountRequest) -> set[str]:
    """Return the options for libfuse: what tdefs needs, and what the user asked for.

    A daemon of root serves the cluster's own user, with the kernel checking permissions; a daemon of the
    cluster's user serves nobody else, not even root.
    """
    source = source_name(request.volume.backing)
    options = {"default_permissions", "subtype=tdefs", f"fsname={source}", *request.options}
    if os.geteuid() == 0:
        options.add("allow_other")
    if request.read_only:
        options.add("ro")
    return options


@dataclass(slots=True)
class _Course:
    """How far a mount has come."""

    served: bool = False
    """It could be used, and whoever asked for it was told so."""
    ended: bool = False
    """It was unmounted, after everything that was written to it had been passed on."""


def run_session(
    request: MountRequest,
    ring: KeyRing,
    policy: Policy,
    calls: SystemCalls,
    ready: Callable[[], None],
) -> None:
    """Mount, call *ready* once the mount serves, and return when it was unmounted and all is on disk.

    The caller holds the volume's lock.

    :raises TdefsError: MOUNT_FAILED, or what *ready* raises, with nothing mounted; MOUNT_LOST where a mount that
        served has ended otherwise than by being unmounted.
    """
    volume = request.volume
    os.umask(0)  # the kernel has applied the caller's umask already
    root_fd = open_data(volume)
    ending = request.believed.last.ending
    expected = request.believed.expectations(volume)
    # what the last session left half made was put right before, unless nothing may be changed
    expected = replace(expected, lost_headers=expected.lost_headers and request.read_only)
    forms = FileForms(ring, expected)
    tree = Tree(calls, root_fd)
    staging = None if request.read_only else Staging(volume.private / STAGING_DIRECTORY)
    last = request.believed.last
    # what sessions wrote in the clear that left no manifest may lie where this policy encrypts
    left_plain = last.ending is Ending.UNCLEAN and last.policy != policy.digest()
    bound = Bound(calls, request.state, refuses=request.refuses_tampering, left_plain=left_plain)
    bound.log()
    complaints = Complaints()
    files = Files(tree, forms, PolicyInUse(policy), complaints, bound)
    operations = FuseOperations(files, root_fd, staging)
    if ending is not Ending.CLEAN:
        # what is found now must be what a crash from now on would leave, names above all
        calls.syncfs("session:recover", root_fd)
    course = _Course()
    failure: Exception | None = None
    with EndSignals() as signals:
        try:
            if not request.read_only:
                _begin(request, policy)
            connection, device = _mounted(request, operations, bound)
        except Exception as error:
            bound.close()
            if not request.read_only and ending is not Ending.UNCLEAN:
                _end(request)
            if not isinstance(error, RuntimeError):
                raise
            refusal = why_not_mounted(request.mountpoint, fuse_options(request))
            raise TdefsError(
                Exit.MOUNT_FAILED,
                f'could not mount at "{request.mountpoint}"',
                detail=f"{error}: {refusal.reason}",
                hint=refusal.hint,
            ) from None
        try:
            log.info("mounted %s at %s", volume.backing, request.mountpoint)
            with without_reserve(root_fd) as spared:
                workers.start()  # not before libfuse has had the process that it needs to mount
                trio.run(
                    _serve,
                    request,
                    device,
                    files,
                    forms,
                    operations,
                    signals,
                    spared,
                    policy.digest(),
                    connection,
                    course,
                    ready,
                )
        except Exception as error:
            failure = error
            log.exception("the mount ended unexpectedly")
        finally:
            connection.close()
            workers.stop()
            if not course.served:
                _take_away(request)
            operations.close()
            try:
                calls.syncfs("session:sync", root_fd)
            except OSError as error:
                complaints.failed("the last sync", str(request.mountpoint), error)
                complaints.left_behind = True
            if course.ended and not complaints.left_behind and not request.read_only:
                _bind(bound)
                _end(request)
            else:
                bound.close()
            os.close(root_fd)
            if staging is not None:
                staging.close()
    if not course.served:
        raise _not_begun(request.mountpoint, failure)
    if not course.ended:
        log.error("the mount at %s was lost: what the kernel had not passed on is lost", request.mountpoint)
        raise TdefsError(
            Exit.MOUNT_LOST,
            f'the mount at "{request.mountpoint}" was lost',
            detail="its connection with the kernel was aborted" if failure is None else _told(failure),
            hint="stop what used it, then mount the volume again: PostgreSQL recovers as after a crash",
        )
    log.info("unmounted %s", request.mountpoint)


def _mounted(request: MountRequest, operations: FuseOperations, bound: Bound) -> tuple[Connection, str]:
    """Mount; return the connection, and the device, or nothing for a mount that was taken away already.

    The journal of changed files is begun last, before anything can be changed: what was added to a volume is told
    of only as long as there is none, so a mount that fails must not leave one.

    :raises RuntimeError: as :class:`Connection` does; TdefsError: MOUNTPOINT_INVALID, MOUNT_MISPLACED or OS_ERROR,
        with nothing mounted.
    """
    with mount_place(request.mountpoint) as place:
        connection = Connection(operations, place.target, fuse_options(request))
        try:
            device = place.device(request.volume.backing)
            if not request.read_only:
                _begin_journal(request, bound)
        except BaseException:
            connection.cut()
            connection.close()
            _take_away(request)
            raise
        return connection, device


def _take_away(request: MountRequest) -> None:
    """Take away a mount that never served; its connection is closed, so nobody waits for it."""
    place = request.mountpoint, request.volume.backing
    if all((mount.mountpoint, mount.backing) != place for mount in tdefs_mounts()):
        return
    try:
        detach_dead(request.mountpoint)
    except (TdefsError, OSError):
        log.exception("the mount at %s could not be taken away", request.mountpoint)


def _not_begun(mountpoint: Path, failure: Exception | None) -> TdefsError:
    """Return what to tell the user of a mount that never served."""
    if failure is None:
        return TdefsError(Exit.MOUNT_FAILED, f'"{mountpoint}" was unmounted before it served')
    cause = _cause(failure)
    if isinstance(cause, TdefsError):
        return cause
    return TdefsError(
        Exit.MOUNT_FAILED, f'could not serve "{mountpoint}"', detail=_told(failure), hint="see the daemon's log"
    )


def _cause(failure: Exception) -> Exception:
    """Return the first exception of a group that trio has made of those of several tasks."""
    return _cause(failure.exceptions[0]) if isinstance(failure, ExceptionGroup) else failure


def _told(failure: Exception) -> str:
    """Return one line that tells of *failure*."""
    cause = _cause(failure)
    if isinstance(cause, OSError) and cause.strerror:
        return from_os_error(cause).message
    return f"{type(cause).__name__}: {printable(str(cause))}"


def _begin(request: MountRequest, policy: Policy) -> None:
    """Write down that the volume is in use from now on.

    :raises TdefsError: OS_ERROR.
    """
    try:
        may = request.believed.statements
        place, digest = os.fspath(request.mountpoint), policy.digest()
        _tell(request.book.begin(os.getpid(), place, plain_files=may.plain_files, policy=digest))
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not write "{request.volume.private / SESSION_FILE}": {error.strerror}',
            hint="the volume's own directory must be writable, and what is in it files",
        ) from None


def _begin_journal(request: MountRequest, bound: Bound) -> None:
    """Begin the journal of changed files.

    :raises TdefsError: OS_ERROR.
    """
    try:
        bound.begin()
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not write "{request.volume.private / JOURNAL_FILE}": {error.strerror}',
            hint="the volume's own directory must be writable, and what is in it files",
        ) from None


def _bind(bound: Bound) -> None:
    """Write the manifest. What goes wrong with it, whatever it is, leaves the end of the session a clean one."""
    try:
        bound.finish()
    except Exception:
        log.exception("the manifest could not be written: the one before, with the journal, holds still")


def _end(request: MountRequest) -> None:
    """Write down that the session has ended; what goes wrong keeps nothing else from being ended."""
    try:
        _tell(request.book.end())
    except (OSError, TdefsError) as error:
        log.error("%s: the next mount recovers as after a crash", _told(error))
    except Exception:
        log.exception("the end of the session could not be written: the next mount recovers as after a crash")


def _tell(fault: str) -> None:
    """Log what has kept the keystore's history from having the session."""
    if fault:
        log.warning("%s: after a power cut, the record of this session will not be believed", fault)


async def _serve(
    request: MountRequest,
    device: str,
    files: Files,
    forms: FileForms,
    operations: FuseOperations,
    signals: EndSignals,
    reserve_spared: bool,
    policy_digest: str,
    connection: Connection,
    course: _Course,
    ready: Callable[[], None],
) -> None:
    """Serve requests until the kernel says that the mount is gone.

    However this ends, nobody waits for an answer then: not the tasks that it waits for, either.
    """
    started = time.time()
    watched = Watched(request.watchdog, device, request.mountpoint, request.log_file)

    def status(_asked: Mapping[str, Any]) -> dict[str, Any]:
        ring = forms.ring
        return {
            "pid": os.getpid(),
            "mountpoint": os.fspath(request.mountpoint),
            "backing": os.fspath(request.volume.backing),
            "volume_id": request.volume.volume_id.hex(),
            "keystore": os.fspath(request.keystore),
            "policy": os.fspath(request.policy) if request.policy else None,
            "policy_digest": policy_digest,
            "log_file": os.fspath(request.log_file) if request.log_file else None,
            "started": started,
            "memory_locked": request.memory_locked,
            "watchdog": watched.patience,
            "read_only": request.read_only,
            "reserve_spared": reserve_spared,
            "tampering": files.manifest.status(),
            "page_cipher": "Python" if page_cipher is PythonPageCipher else "compiled",
            "keystore_revision": ring.revision,
            "data_keys": [
                {
                    "name": key.name,
                    "round": key.round,
                    "algorithm": key.algorithm,
                    "state": REVOKED if ring.is_revoked(key) else ACTIVE,
                }
                for key in ring
            ],
            "destroyed_rounds": sorted(ring.destroyed),
            "known_inodes": len(files.tree.inodes),
            "open_handles": operations.open_handles,
            "requests": dict(sorted(operations.requests.items())),
            "failures": dict(sorted(operations.complaints.counts.items())),
        }

    def keys(asked: Mapping[str, Any]) -> dict[str, Any]:
        """Use new keys; nothing else runs meanwhile."""
        try:
            ring = open_ring(asked, forms.ring)
        except RingRefusedError as error:
            log.warning("new keys were refused: %s", error)
            return {"refused": str(error)}
        files.opener.use_ring(ring)
        log.info("new keys: revision %d of the keystore", ring.revision)
        return {"keystore_revision": ring.revision}

    def accept(asked: Mapping[str, Any]) -> dict[str, Any]:
        return accepting.answer(files.manifest, request.state, asked)

    def ended() -> None:
        course.ended = _is_unmounted(request, device, operations)

    async with trio.open_nursery() as nursery:
        try:
            # first, since the mount can be used as soon as anything serves it, and then be told to end
            await nursery.start(signals.unmount_on_first, request.mountpoint, device)
            nursery.start_soon(_announce, request, device, operations.serves, course, ready)
            if request.watchdog and device:
                nursery.start_soon(watched.stay)
            if (control := _control_socket(request)) is not None:
                nursery.start_soon(_control, control, {"status": status, "keys": keys, accepting.REQUEST: accept})
            await connection.serve(ended)
        finally:
            connection.cut()
        nursery.cancel_scope.cancel()


def _is_unmounted(request: MountRequest, device: str, operations: FuseOperations) -> bool:
    """Tell whether the connection has ended since the file system was unmounted everywhere, and not by an abort.

    The kernel says the same in both cases (ENODEV). It passes on what was written to a file when that is closed
    at the latest, and keeps the file system as long as one is open; so nothing is lost where it has taken it away,
    or nothing was open. To be asked at once: a file system that was aborted goes as soon as nobody has it open.
    """
    if not device:
        return True
    if is_listed(device, request.volume.backing):
        return False
    # the kernel drops the last releases unsent when it unmounts
    return operations.open_handles == 0 or not is_living(device)


def _control_socket(request: MountRequest) -> Path | None:
    """Return where the daemon is to answer; ``None``, after a line in the log, if there is no place for that."""
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


async def _announce(
    request: MountRequest, device: str, serves: trio.Event, course: _Course, ready: Callable[[], None]
) -> None:
    """Say that the mount serves, once it does."""
    await serves.wait()
    if device not in devices_at(request.mountpoint):
        return  # unmounted already
    if not raise_kernel_limits(device):
        log.info("this user may not raise the kernel's read-ahead and dirty limits of the mount")
    ready()
    course.served = True


async def _control(path: Path, answers: Answers) -> None:
    """Serve the control socket; what goes wrong with it, a lack of memory too, does not end the mount."""
    pause = 1
    while True:
        try:
            return await serve_control(path, answers)
        except Exception:
            log.exception("unexpected error at the control socket: it begins anew in %d s", pause)
            await trio.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)

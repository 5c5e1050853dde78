"""One mount from its beginning to its end: mounting, serving, signals, and writing everything out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from tdefs.errors import Exit, TdefsError
from tdefs.format.pages import PythonPageCipher, page_cipher
from tdefs.fs.calls import SystemCalls
from tdefs.fs.control_server import serve_control
from tdefs.fs.ending import EndSignals
from tdefs.fs.inodes import InodeTable
from tdefs.fs.loop import WORKERS, install_polling_wait
from tdefs.fs.mount_failure import why_not_mounted
from tdefs.fs.mount_table import source_name
from tdefs.fs.mounts import device_of, devices_at, raise_kernel_limits
from tdefs.fs.opening import Opener
from tdefs.fs.operations import FuseOperations
from tdefs.fs.read_only import control_places
from tdefs.fs.reserve import with_own_rights, without_reserve
from tdefs.fs.sealing import Expectations, Sealer
from tdefs.fs.watched import Watched
from tdefs.keys.document import ACTIVE, REVOKED
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.ring_message import RingRefusedError, open_ring
from tdefs.policy.model import Policy
from tdefs.volume import SESSION_FILE, Session, Volume, was_left_clean, write_session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What to mount where, and how."""

    volume: Volume
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


def run_session(
    request: MountRequest,
    ring: KeyRing,
    policy: Policy,
    calls: SystemCalls,
    ready: Callable[[], None],
) -> None:
    """Mount, call *ready* once the mount serves, and return when it was unmounted and all is on disk.

    The caller holds the volume's lock.

    :raises TdefsError: MOUNT_FAILED, with nothing mounted.
    """
    volume = request.volume
    os.umask(0)  # the kernel has applied the caller's umask already
    root_fd = os.open(volume.backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    left_clean = was_left_clean(volume)
    # what the last session left half made was put right before, unless nothing may be changed
    lost_headers = request.read_only and not left_clean
    sealer = Sealer(ring, Expectations(volume.volume_id, volume.plain_files, lost_headers=lost_headers))
    inodes = InodeTable(calls, root_fd)
    opener = Opener(calls, inodes, sealer, policy)
    operations = FuseOperations(calls, inodes, opener, root_fd)
    if not left_clean:
        # what is found now must be what a crash from now on would leave, names above all
        calls.syncfs("session:recover", root_fd)
    session = Session(os.getpid(), os.fspath(request.mountpoint), clean=False)
    served = False

    def announce() -> None:
        nonlocal served
        served = True
        ready()

    with EndSignals() as signals:
        if not request.read_only:
            _begin(volume, session)
        try:
            pyfuse3.init(operations, os.fspath(request.mountpoint), fuse_options(request))
        except RuntimeError as error:
            if not request.read_only:
                write_session(volume, replace(session, clean=left_clean))
            refusal = why_not_mounted(request.mountpoint, fuse_options(request))
            raise TdefsError(
                Exit.MOUNT_FAILED,
                f'could not mount at "{request.mountpoint}"',
                detail=f"{error}: {refusal.reason}",
                hint=refusal.hint,
            ) from None
        try:
            install_polling_wait()
            log.info("mounted %s at %s", volume.backing, request.mountpoint)
            with without_reserve(root_fd) as spared:
                trio.run(
                    _serve, request, opener, sealer, operations, inodes, signals, spared, policy.digest(), announce
                )
        finally:
            pyfuse3.close(unmount=True)
            operations.close()
            try:
                calls.syncfs("session:sync", root_fd)
            except OSError as error:
                opener.complaints.failed("the last sync", str(request.mountpoint), error)
                opener.left_something = True
            if not opener.left_something and not request.read_only:
                write_session(volume, replace(session, clean=True))
            os.close(root_fd)
            log.info("unmounted %s", request.mountpoint)
    if not served:
        raise TdefsError(Exit.MOUNT_FAILED, f'"{request.mountpoint}" was unmounted before it served')


def _begin(volume: Volume, session: Session) -> None:
    """Write down that the volume is in use from now on.

    :raises TdefsError: OS_ERROR.
    """
    try:
        write_session(volume, session)
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not write "{volume.private / SESSION_FILE}": {error.strerror}',
            hint="the volume's own directory must be writable, and what is in it files",
        ) from None


async def _serve(
    request: MountRequest,
    opener: Opener,
    sealer: Sealer,
    operations: FuseOperations,
    inodes: InodeTable,
    signals: EndSignals,
    reserve_spared: bool,
    policy_digest: str,
    ready: Callable[[], None],
) -> None:
    """Serve requests until the kernel says that the mount is gone."""
    started = time.time()
    device = next(iter(devices_at(request.mountpoint)[::-1]), "")  # none if it was unmounted already
    watched = Watched(request.watchdog, device, request.mountpoint, request.log_file)

    def status(_asked: Mapping[str, Any]) -> dict[str, Any]:
        ring = sealer.ring
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
            "known_inodes": len(inodes),
            "open_handles": operations.open_handles,
            "requests": dict(sorted(operations.requests.items())),
            "failures": dict(sorted(operations.complaints.counts.items())),
        }

    def keys(asked: Mapping[str, Any]) -> dict[str, Any]:
        """Adopt new keys; nothing else runs meanwhile."""
        try:
            ring = open_ring(asked, sealer.ring)
        except RingRefusedError as error:
            log.warning("new keys were refused: %s", error)
            return {"refused": str(error)}
        opener.adopt(ring)
        log.info("new keys: revision %d of the keystore", ring.revision)
        return {"keystore_revision": ring.revision}

    async with trio.open_nursery() as nursery:
        # first, since the mount can be used as soon as anything serves it, and then be told to end
        await nursery.start(signals.unmount_on_first, request.mountpoint, device)
        nursery.start_soon(_announce, request.mountpoint, device, ready)
        if request.watchdog and device:
            nursery.start_soon(watched.stay)
        if (control := _control_socket(request)) is not None:
            nursery.start_soon(serve_control, control, {"status": status, "keys": keys})
        await pyfuse3.main(max_tasks=WORKERS)
        nursery.cancel_scope.cancel()


def _control_socket(request: MountRequest) -> Path | None:
    """Return where the daemon is to answer; ``None``, after a line in the log, if there is no place for that."""
    if not request.read_only:
        return request.volume.control_socket
    try:
        path = control_places(request.volume.backing)[0]
        with with_own_rights():
            path.parent.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        log.warning("no control socket, so 'tdefs status' will know less: %s", error)
        return None
    return path


async def _announce(mountpoint: Path, device: str, ready: Callable[[], None]) -> None:
    """Say that the mount serves, once a request has gone through it."""
    if await trio.to_thread.run_sync(device_of, mountpoint) != device:
        return  # unmounted already
    if not await trio.to_thread.run_sync(raise_kernel_limits, device):
        log.info("this user may not raise the kernel's read-ahead and dirty limits of the mount")
    ready()

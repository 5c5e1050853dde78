"""What the process asks of the host so that keys do not leave its memory, and files can be opened."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError

# linux/prctl.h, linux/mman.h (asm-generic) and linux/capability.h
_PR_SET_DUMPABLE = 4
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_CAP_IPC_LOCK = 14

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_KEPT_BYTES = 32 << 20

#: Address space that the daemon has from the beginning: the buffers of all requests that it works on at a time,
#: and what these need to be encrypted and decrypted.
RESERVED_BYTES = 128 << 20
_LEAST_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]


def expect_signals() -> None:
    """Undo what a caller may have left that makes every program deaf: blocked signals, ignored ends of children.

    With SIGCHLD ignored the kernel forgets how a child ended, and a failed key command looks like one that did
    well. What a caller ignores on purpose (SIGHUP, by nohup) stays ignored.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def harden_process() -> None:
    """Keep this process's memory out of core dumps and away from debuggers of the same user.

    To be called before any secret is read. A program started later (a key command) is dumpable again,
    because exec resets it, but inherits the core size limit of zero. Raises TdefsError(OS_ERROR).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The size limit does not hold where core_pattern is a pipe (systemd-coredump); this flag does, and it
    # denies ptrace and /proc/PID/mem to other processes of the same user.
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise TdefsError(Exit.OS_ERROR, "could not make the process undumpable", detail=reason)


def refuse_tracer() -> None:
    """Go no further while a debugger is attached: it would read each secret that this process gets.

    To be called after :func:`harden_process`, which keeps those out that are not root's; one that came earlier, or
    that followed a fork, is still there. One that came and went in between leaves no trace.

    :raises TdefsError: PROCESS_TRACED.
    """
    tracer = _status("TracerPid")
    if tracer not in ("", "0"):
        raise TdefsError(
            Exit.PROCESS_TRACED,
            f"process {tracer} traces this one, and would see its secrets",
            hint="run tdefs without strace or a debugger; root can trace a daemon that serves already (strace -p)",
        )


def lock_memory() -> bool:
    """Keep this process's memory out of swap; return whether that was possible.

    To be called before any secret is read, and again after a fork, which undoes it.

    Without the right to lock all memory nothing is done: under a small RLIMIT_MEMLOCK (8 MB by default)
    MCL_FUTURE makes every later allocation beyond the limit fail, so the daemon would die of a
    MemoryError in the middle of serving a database. That is worse than pages in swap, which the
    administrator can encrypt or turn off.
    """
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft_limit != resource.RLIM_INFINITY and not has_capability(_CAP_IPC_LOCK):
        return False
    # ONFAULT locks pages as they are touched; without it, every mapped but never used page of thread
    # stacks and libraries would be read in and pinned.
    locked: int = _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    return locked == 0


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed, instead of giving it back to the kernel at once.

    Requests of 1 MiB allocate and free buffers of that size. With glibc's defaults each one is mapped,
    faulted in page by page and unmapped again, which costs more than encrypting it.
    """
    _libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    _libc.mallopt(_M_TRIM_THRESHOLD, 2 * RESERVED_BYTES)
    _libc.mallopt(_M_TOP_PAD, _KEPT_BYTES)


def reserve_memory() -> None:
    """Take the address space that requests need, as far as it can be had, and leave it to the allocator.

    A limit (RLIMIT_AS, strict overcommit) may be reached at any time, and a request that has no memory fails.
    Nothing is touched, so nothing is in use that was not before. To be called after :func:`keep_freed_memory`.

    :raises TdefsError: OS_ERROR, where there is not even room for a buffer for each request.
    """
    # threads would take 64 MiB each for themselves, and get nothing of what is reserved here
    _libc.mallopt(_M_ARENA_MAX, 1)
    pieces = [_libc.malloc(_PIECE_BYTES) for _ in range(RESERVED_BYTES // _PIECE_BYTES)]
    reserved = sum(_PIECE_BYTES for piece in pieces if piece)
    for piece in pieces:
        _libc.free(piece)
    if reserved < _LEAST_BYTES:
        raise TdefsError(
            Exit.OS_ERROR,
            "not enough memory to serve a mount",
            detail=f"{_LEAST_BYTES >> 20} MiB of address space are needed, and {reserved >> 20} MiB are to be had",
            hint="raise the limit (ulimit -v, LimitAS= of the unit), or free memory",
        )


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return the soft limit then in force.

    Each file that PostgreSQL has open through the mount needs a descriptor in this process.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Refused where the hard limit is above a since lowered fs.nr_open; the old limit then serves.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def has_capability(number: int) -> bool:
    """Tell whether capability ``number`` is in this thread's effective set (proc(5), CapEff)."""
    return bool(int(_status("CapEff") or "0", 16) >> number & 1)


def _status(name: str) -> str:
    """Return a field of this thread's status (proc(5)), "" if there is none."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return value.strip()
    return ""


def tell_service_manager() -> None:
    """Say that the service is ready to the service manager that has started it; without one nothing is done.

    The protocol of sd_notify(3). A manager that cannot be told ends the service when its patience ends.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.connect(name)
        manager.send(b"READY=1")

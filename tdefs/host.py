"""What the process asks of the host: that keys do not leave its memory, and that files can be opened."""

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

#: Address space that the daemon reserves at the beginning: the buffers of all requests that it works on at one
#: time, and what it needs to encrypt and decrypt them.
RESERVED_BYTES = 128 << 20
_LEAST_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.malloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]


def expect_signals() -> None:
    """Reset signals that the caller may have blocked, and SIGCHLD, which the caller may have ignored.

    With SIGCHLD ignored the kernel forgets how a child ended, and a failed key command looks like a successful
    one. What a caller ignores on purpose (SIGHUP, by nohup) stays ignored.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def harden_process() -> None:
    """Keep this process's memory out of core dumps and away from debuggers of the same user.

    Call this before any secret is read. A program that is started later (a key command) is dumpable again, because
    exec resets it, but it inherits the core size limit of zero.

    :raises TdefsError: OS_ERROR.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The size limit has no effect where core_pattern is a pipe (systemd-coredump). This flag has, and it also
    # denies ptrace and /proc/PID/mem to other processes of the same user.
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise TdefsError(Exit.OS_ERROR, "could not make the process undumpable", detail=reason)


def refuse_tracer() -> None:
    """Refuse to go on while a debugger is attached: it would read each secret that this process gets.

    Call this after :func:`harden_process`, which keeps out debuggers that are not root's. A debugger that attached
    earlier, or followed a fork, is still attached. One that attached and detached in between leaves no trace.

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

    Call this before any secret is read, and again after a fork, which undoes it.

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
    """Make the allocator keep freed memory, instead of giving it back to the kernel at once.

    Requests of 1 MiB allocate and free buffers of that size. With glibc's defaults each one is mapped,
    faulted in page by page and unmapped again, which costs more than encrypting it.
    """
    _libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    _libc.mallopt(_M_TRIM_THRESHOLD, 2 * RESERVED_BYTES)
    _libc.mallopt(_M_TOP_PAD, _KEPT_BYTES)


def reserve_memory() -> None:
    """Reserve the address space that requests need, as far as possible, and leave it to the allocator.

    A limit (RLIMIT_AS, strict overcommit) may be reached at any time, and a request without memory fails. The
    memory is not touched, so it is reserved but not in use. Call this after :func:`keep_freed_memory`.

    :raises TdefsError: OS_ERROR if there is not even room for a buffer for each request.
    """
    # otherwise each thread would take 64 MiB for itself, and could not use what is reserved here
    _libc.mallopt(_M_ARENA_MAX, 1)
    pieces = [_libc.malloc(_PIECE_BYTES) for _ in range(RESERVED_BYTES // _PIECE_BYTES)]
    reserved = sum(_PIECE_BYTES for piece in pieces if piece)
    for piece in pieces:
        _libc.free(piece)
    if reserved < _LEAST_BYTES:
        raise TdefsError(
            Exit.OS_ERROR,
            "not enough memory to serve a mount",
            detail=f"{_LEAST_BYTES >> 20} MiB of address space are needed, and {reserved >> 20} MiB are available",
            hint="raise the limit (ulimit -v, LimitAS= of the unit), or free memory",
        )


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return the soft limit that is then in force.

    Each file that PostgreSQL has open through the mount needs a descriptor in this process.
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # This fails if fs.nr_open was lowered below the hard limit; the old limit stays then.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def has_capability(number: int) -> bool:
    """Return whether capability ``number`` is in this thread's effective set (proc(5), CapEff)."""
    return bool(int(_status("CapEff") or "0", 16) >> number & 1)


def _status(name: str) -> str:
    """Return a field of this thread's status (proc(5)); "" if there is none."""
    for line in Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace").splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return value.strip()
    return ""


def tell_service_manager() -> None:
    """Tell the service manager that has started this service that it is ready. Do nothing without a manager.

    This is the protocol of sd_notify(3). If the message does not arrive, the manager ends the service after a
    time.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        manager.connect(name)
        manager.send(b"READY=1")

"""The watchdog: a process of its own that ends a mount whose daemon has frozen.

If a daemon no longer answers, programs that use its mount wait in the kernel for ever, and no signal ends them. An
abort of the connection ends them: every request fails, waiting or new. Then the daemon is killed, which frees the
volume's lock.

The watchdog runs as a script, and imports only the standard library, so it needs little memory and holds no key.
Its standard input is a socket to the daemon (see watched.py). It sends one byte for each question, and gets one
back.
"""

import os
import select
import signal
import socket
import stat
import sys
import syslog
import time
from contextlib import suppress
from errno import EINVAL
from pathlib import Path

_PINGS = 5
"""So many must stay without an answer before the daemon counts as frozen."""
_LONGEST_INTERVAL = 10.0
# A watchdog that wakes so much too late was suspended or got no processor, and perhaps the daemon was, too.
_LATE_FACTOR = 2
# A killed process ends when the disk lets go of it.
_KILL_SECONDS = 30
_PIECE = 4096


class Patience:
    """How long the daemon has been silent, in seconds during which it could have answered."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.interval = min(seconds / _PINGS, _LONGEST_INTERVAL)
        """Seconds between two pings."""
        self.silent = 0.0

    def add_interval(self, elapsed: float, *, answered: bool, waits_for_disk: bool) -> bool:
        """Add one interval; return whether the daemon counts as frozen.

        :param elapsed: how many seconds it took; the clock stands still while the machine is suspended.
        :param waits_for_disk: whether the daemon waits for the disk below: then it does not count as frozen.
        """
        if answered or waits_for_disk or elapsed > _LATE_FACTOR * self.interval:
            self.silent = 0.0
        else:
            self.silent += elapsed
        return self.silent >= self._seconds


def is_silent(link: socket.socket, pid: int, seconds: float) -> bool:
    """Ask the daemon again and again; return True once it counts as frozen, False when it has hung up."""
    patience = Patience(seconds)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while True:
        begun = time.monotonic()
        answered = False
        try:
            with suppress(BlockingIOError):
                link.send(b"?", socket.MSG_DONTWAIT)
            while (left := begun + patience.interval - time.monotonic()) > 0:
                if poll.poll(left * 1000):
                    if not link.recv(_PIECE):
                        return False
                    answered = True
        except OSError:
            return False
        elapsed = time.monotonic() - begun
        if patience.add_interval(elapsed, answered=answered, waits_for_disk=not answered and waits_for_disk(pid)):
            return True


def waits_for_disk(pid: int) -> bool:
    """Return whether the main thread of a process waits for the disk below, and not for a FUSE mount.

    If the kernel does not say what the thread waits for, an uninterruptible wait counts as a wait for the disk.
    """
    process = Path(f"/proc/{pid}")
    try:
        # proc(5): the state follows the name, which may hold anything
        state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
        place = (process / "wchan").read_bytes()
    except (OSError, IndexError):
        return False
    return state == b"D" and not place.startswith((b"fuse_", b"request_wait_answer"))


def end(pidfd: int, abort: int) -> str:
    """Abort the connection, then kill the daemon; return what failed, or an empty text."""
    failed = []
    try:
        os.write(abort, b"1")
    except OSError as error:
        failed.append(f"the connection could not be aborted ({error.strerror})")
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_KILL_SECONDS * 1000):
        failed.append(f"the daemon is killed, but has not ended after {_KILL_SECONDS} s: the disk below holds it")
    return "; ".join(failed)


def report(log_file: str, message: str) -> None:
    """Write *message* into the daemon's log (or standard error, if that is its log), and into the system's log."""
    stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S')},{time.time() % 1 * 1000:03.0f}"
    line = f"{stamp} ERROR tdefs.daemon.watchdog: {message}\n".encode(errors="backslashreplace")
    with suppress(OSError):
        os.write(_opened(log_file) if log_file else 2, line)
    if not log_file and "JOURNAL_STREAM" in os.environ:
        return  # systemd.exec(5): standard error has gone there already
    syslog.openlog("tdefs", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, message.encode(errors="backslashreplace").decode())


def _opened(log_file: str) -> int:
    """Open the log if it is still the daemon's: no link, no FIFO without a reader, no file of another user."""
    fd = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid in (0, os.geteuid()):
        return fd
    os.close(fd)
    raise OSError(EINVAL, os.strerror(EINVAL), log_file)


def main(arguments: list[str]) -> None:
    """Watch until the daemon hangs up, or is ended.

    :param arguments: seconds of patience, the daemon's process and a descriptor of it, a descriptor of the
        connection's file ``abort``, the mount point, the log file (empty: standard error).
    """
    seconds, pid, pidfd, abort = map(int, arguments[:4])
    mountpoint, log_file = arguments[4:]
    with socket.socket(fileno=0) as link:
        if not is_silent(link, pid, seconds):
            return
    failed = end(pidfd, abort)
    shown = "".join(char if char.isprintable() else "?" for char in mountpoint)
    report(
        log_file,
        f'the daemon (process {pid}) of "{shown}" has not answered for {seconds} s: {failed or "it was killed"}; '
        "what used the mount gets errors: stop it, PostgreSQL first, then mount again",
    )


if __name__ == "__main__":
    main(sys.argv[1:])

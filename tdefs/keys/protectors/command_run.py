"""Running a key command: within a time, with bounded output, and with nothing of it left running."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from tdefs.errors import Exit, TdefsError

_READ_BYTES = 4096
# SIGINT is not among them: Python makes a KeyboardInterrupt of it.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass
class CommandOutcome:
    """How a command ended.

    ``status`` is its exit status, or minus the signal that ended it; it means nothing if the command was
    stopped by us, because it ``timed_out`` or printed more than allowed (``overflowed``). Of stderr only
    the number of bytes is kept.
    """

    stdout: bytearray = field(default_factory=bytearray, repr=False)
    stderr_bytes: int = 0
    status: int = 0
    timed_out: bool = False
    overflowed: bool = False


def run_command(
    command: str,
    *,
    timeout_seconds: float,
    max_output_bytes: int,
    variables: Mapping[str, str] | None = None,
    descriptors: tuple[int, ...] = (),
) -> CommandOutcome:
    """Run ``command`` by ``/bin/sh -c``, with an empty stdin, in a session and process group of its own.

    ``variables`` are added to its environment; of the open descriptors it gets ``descriptors`` alone.
    Whatever of its process group still runs afterwards is killed. Raises TdefsError(KEY_COMMAND_FAILED) if
    it cannot be started.
    """
    deadline = time.monotonic() + timeout_seconds
    outcome = CommandOutcome()
    try:
        # A session of its own: what it starts in the background can be killed with it, and it cannot
        # take its input from our terminal unless it is lent to it.
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, **(variables or {})},
            pass_fds=descriptors,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it contains a null character"
        raise TdefsError(Exit.KEY_COMMAND_FAILED, "could not run the key command", detail=reason or "") from None
    try:
        _follow(process, outcome, deadline, max_output_bytes)
    finally:
        # Before wait() reaps the leader: until then the group's number cannot become another's.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        outcome.status = process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return outcome


@contextmanager
def cleaned_up_before_signals() -> Iterator[None]:
    """Have a signal that ends this process wait until the block has cleaned up; Ctrl-Z does nothing in it.

    The terminal's signals do not reach a command in a session of its own. If we just died of one, the
    command would go on, with the terminal's echo off; if we were stopped, it and the shell would both read
    from the terminal. What the caller has ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [
        number for number in (*_ENDING_SIGNALS, signal.SIGTSTP) if signal.getsignal(number) == signal.SIG_DFL
    ]

    def end(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGTSTP:
            for other in handled:
                signal.signal(other, signal.SIG_IGN)
            raise _EndedBySignal(number)

    received = 0
    try:
        for number in handled:
            signal.signal(number, end)
        yield
    except _EndedBySignal as ended:
        received = ended.number
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
    if received:
        signal.raise_signal(received)


class _EndedBySignal(BaseException):
    """A signal came that ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _follow(
    process: subprocess.Popen[bytes], outcome: CommandOutcome, deadline: float, max_output_bytes: int
) -> None:
    """Read both pipes to their end and wait for the exit, or until the deadline or the limit of output.

    A background process that keeps a pipe open counts as the command still running: what it will print
    cannot be known.
    """
    exit_descriptor = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for source in (exit_descriptor, process.stdout, process.stderr):
                if source is not None:
                    selector.register(source, selectors.EVENT_READ)
            while selector.get_map():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    outcome.timed_out = True
                    return
                for key, _ in selector.select(remaining):
                    if key.fd == exit_descriptor or not _take(key.fd, key.fileobj is process.stdout, outcome):
                        selector.unregister(key.fileobj)
                if len(outcome.stdout) > max_output_bytes:
                    outcome.overflowed = True
                    return
    finally:
        os.close(exit_descriptor)


def _take(descriptor: int, is_stdout: bool, outcome: CommandOutcome) -> bool:
    """Read once; return False at the end of the pipe."""
    data = os.read(descriptor, _READ_BYTES)
    if is_stdout:
        outcome.stdout += data
    else:
        outcome.stderr_bytes += len(data)
    return bool(data)

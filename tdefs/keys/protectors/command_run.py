"""Running a key command: for a limited time, with limited output, and so that no process of it is left."""

from __future__ import annotations

import os
import pwd
import selectors
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from tdefs.errors import Exit, TdefsError

_READ_BYTES = 4096
# SIGINT is not among them: Python turns it into a KeyboardInterrupt.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# The signals of the keys by which a person at the terminal ends a program.
_KEYS = (signal.SIGINT, signal.SIGQUIT)
_FIRST_FREE_DESCRIPTOR = 3


@dataclass
class CommandOutcome:
    """How a command ended.

    ``status`` is its exit status, or minus the signal that ended it. It means nothing if tdefs stopped the
    command, because it ``timed_out`` or printed more than is allowed (``overflowed``). Of stderr only the number
    of bytes is kept.
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

    ``variables`` are added to its environment (:func:`_environment`). Of the open descriptors it gets
    ``descriptors`` alone. No signal is ignored or blocked in it, even if this process ignores or blocks it. Each
    process of its process group that still runs afterwards is killed.

    :raises TdefsError: KEY_COMMAND_FAILED if it cannot be started.
    """
    deadline = time.monotonic() + timeout_seconds
    outcome = CommandOutcome()
    stdout, its_stdout = os.pipe()
    stderr, its_stderr = os.pipe()
    try:
        try:
            process = _start(
                command, {**_environment(), **(variables or {})}, (its_stdout, its_stderr), descriptors
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it contains a null character"
            raise TdefsError(
                Exit.KEY_COMMAND_FAILED, "could not run the key command", detail=reason or ""
            ) from None
        finally:
            os.close(its_stdout)
            os.close(its_stderr)
        try:
            _follow(process, stdout, stderr, outcome, deadline, max_output_bytes)
        finally:
            # Before the leader is waited for: until then the group's number cannot become another's.
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            outcome.status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    finally:
        os.close(stdout)
        os.close(stderr)
    return outcome


def _environment() -> dict[str, str]:
    """Return the environment of a command: the variables of this process, and those of a login of its user.

    The launcher has let only a short list of variables through (cli/launcher.c). HOME is the user's own here: sudo
    may have left that of the caller. NOTIFY_SOCKET is for this process alone.
    """
    found = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    try:
        user = pwd.getpwuid(os.geteuid())
    except KeyError:
        return found | {"HOME": "/"}
    return found | {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": "/bin/sh"}


def _start(
    command: str, environment: Mapping[str, str], outputs: tuple[int, int], descriptors: Sequence[int]
) -> int:
    """Start the command, and return the number of its process.

    It has a session of its own. So its background processes can be killed with it, and it cannot read from our
    terminal unless we lend it. posix_spawn(3) is used, and not subprocess, because it can reset the signals: under
    nohup and in the background of a shell some are ignored, a program inherits that, and a shell cannot undo it
    (POSIX, ``trap``).
    """
    kept = {*outputs, *descriptors}
    # Those of Python itself are closed by exec; our caller may have left others open.
    foreign = [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= _FIRST_FREE_DESCRIPTOR]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        *((os.POSIX_SPAWN_DUP2, descriptor, number) for number, descriptor in enumerate(outputs, 1)),
        # onto itself: it survives exec
        *((os.POSIX_SPAWN_DUP2, descriptor, descriptor) for descriptor in descriptors),
        *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in foreign if descriptor not in kept),
    ]
    return os.posix_spawn(
        "/bin/sh",
        ["/bin/sh", "-c", command],
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=signal.valid_signals(),
    )


@contextmanager
def cleaned_up_before_signals(*, at_terminal: bool) -> Iterator[None]:
    """Let a signal that ends this process wait until the block has cleaned up; in the block Ctrl-Z does nothing.

    The signals of the terminal do not reach a command in a session of its own. If one of them just ended this
    process, the command would go on, with the echo of the terminal off. If one stopped this process, the command
    and the shell would both read from the terminal. A signal that the caller ignores stays ignored, except for
    the keys by which a person who is asked ``at_terminal`` says no: the caller could not know that a person would
    be asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING_SIGNALS, signal.SIGTSTP)}
    handled = [
        number
        for number, disposition in before.items()
        if disposition == signal.SIG_DFL or (disposition == signal.SIG_IGN and at_terminal and number in _KEYS)
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
            signal.signal(number, before[number])
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    if received:
        signal.signal(received, signal.SIG_DFL)
        signal.raise_signal(received)


class _EndedBySignal(BaseException):
    """A signal that ends the process has arrived."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _follow(
    process: int, stdout: int, stderr: int, outcome: CommandOutcome, deadline: float, max_output_bytes: int
) -> None:
    """Read both pipes to their end and wait for the exit, or until the deadline or the limit of output.

    If a background process keeps a pipe open, the command counts as still running: it may print more.
    """
    exit_descriptor = os.pidfd_open(process)
    try:
        with selectors.DefaultSelector() as selector:
            for source in (exit_descriptor, stdout, stderr):
                selector.register(source, selectors.EVENT_READ)
            while selector.get_map():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    outcome.timed_out = True
                    return
                for key, _ in selector.select(remaining):
                    if key.fd == exit_descriptor or not _take(key.fd, key.fd == stdout, outcome):
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

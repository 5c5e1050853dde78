"""Standard output and standard error that never stop the work: errors of writing are kept for the end."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from tdefs.errors import Exit

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NOBODY_READS = errno.EPIPE


class _Descriptor(io.RawIOBase):
    """Writes to one descriptor, drops what cannot be written, and keeps the first error."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.loss: OSError | None = None

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return self._write(data)
        except OSError as error:
            # tried again with the next piece: a daemon in the foreground outlives a full disk
            self.loss = self.loss or error
        return memoryview(data).nbytes

    def _write(self, data: ReadableBuffer) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                # a descriptor that a caller has made non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class SteadyStream(io.TextIOWrapper):
    """A text stream whose writes succeed, whether or not anybody reads it."""

    def __init__(self, fd: int, like: TextIO | None, *, errors: str, line_buffering: bool) -> None:
        """Replace the stream *like*; ``None`` if it was closed before tdefs started."""
        # its number may belong to any other file by now
        self._descriptor = _Descriptor(-1 if like is None else fd)
        if like is None:
            self._descriptor.loss = OSError(_NOBODY_READS, os.strerror(_NOBODY_READS))
        super().__init__(
            io.BufferedWriter(self._descriptor),
            encoding=like.encoding if like is not None else "utf-8",
            errors=errors,
            line_buffering=line_buffering,
        )

    @property
    def loss(self) -> OSError | None:
        """Return the first error that has lost output."""
        return self._descriptor.loss


def steady_streams() -> None:
    """Make standard output and standard error steady, for the rest of the process."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    out = sys.stdout
    errors = (out.errors if out is not None else None) or "strict"
    sys.stdout = SteadyStream(1, out, errors=errors, line_buffering=out is not None and out.isatty())
    sys.stderr = SteadyStream(2, sys.stderr, errors="backslashreplace", line_buffering=True)


def output_loss() -> OSError | None:
    """Write out what was printed; return why it did not arrive, ``None`` if it did."""
    sys.stdout.flush()
    return sys.stdout.loss if isinstance(sys.stdout, SteadyStream) else None


def nobody_reads(loss: OSError) -> bool:
    """Return whether there is no reader any more (``head``, ``grep -q``), which is not a failure of the output."""
    return loss.errno == _NOBODY_READS


def check_output() -> None:
    """Stop a command that only prints if its output cannot be written; but not if nobody reads it.

    :raises OSError: the output's disk is full, or fails.
    """
    loss = output_loss()
    if loss is not None and not nobody_reads(loss):
        raise loss


def end_output(code: int, *, changed: bool) -> int:
    """Write out what was printed, say so if that failed, and return the exit code of the command.

    The work decides it, not the output. Only a command that changed nothing has failed if its output is lost.

    :param code: the exit code of the work.
    :param changed: whether the command has changed something.
    """
    loss = output_loss()
    if loss is None or nobody_reads(loss):
        return code
    print(f"tdefs: could not write the output: {loss.strerror}", file=sys.stderr)
    if changed:
        print("DETAIL:  the command has done its work; only its output is lost", file=sys.stderr)
    return Exit.OS_ERROR if code == Exit.OK and not changed else code

"""The records of a session: that the volume is in use, which files change, and how it ended."""

from __future__ import annotations

import logging
import os

from tdefs.daemon.request import MountRequest
from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.manifest.bound import Bound
from tdefs.manifest.journal import JOURNAL_FILE
from tdefs.text import printable
from tdefs.volume.session_record import SESSION_FILE

log = logging.getLogger(__name__)


def begin_session(request: MountRequest) -> None:
    """Write down that the volume is in use from now on.

    :raises TdefsError: OS_ERROR.
    """
    try:
        may = request.believed.statements
        place, digest = os.fspath(request.mountpoint), request.policy.policy.digest()
        log_fault(request.book.begin(os.getpid(), place, plain_files=may.plain_files, policy=digest))
    except OSError as error:
        raise _not_written(request, SESSION_FILE, error) from None


def begin_journal(request: MountRequest, bound: Bound) -> None:
    """Begin the journal of changed files.

    :raises TdefsError: OS_ERROR.
    """
    try:
        bound.begin()
    except OSError as error:
        raise _not_written(request, JOURNAL_FILE, error) from None


def write_manifest(bound: Bound) -> None:
    """Write the manifest. After any error in it the session still ends cleanly."""
    try:
        bound.finish()
    except Exception:
        log.exception("the manifest could not be written: the one before, with the journal, stays valid")


def end_session(request: MountRequest) -> None:
    """Write down that the session has ended. An error is logged, and the rest is ended in any case."""
    try:
        log_fault(request.book.end())
    except (OSError, TdefsError) as error:
        log.error("%s: the next mount recovers as after a crash", in_one_line(error))
    except Exception:
        log.exception("the end of the session could not be written: the next mount recovers as after a crash")


def log_fault(fault: str) -> None:
    """Log why the session is not in the keystore's history, if it is not."""
    if fault:
        log.warning("%s: after a power cut, the record of this session will not be believed", fault)


def in_one_line(failure: Exception) -> str:
    """Return one line about *failure*, or about the first one of a group."""
    cause = first_cause(failure)
    if isinstance(cause, OSError) and cause.strerror:
        return from_os_error(cause).message
    return f"{type(cause).__name__}: {printable(str(cause))}"


def first_cause(failure: Exception) -> Exception:
    """Return the first exception of a group that trio has made from several tasks."""
    return first_cause(failure.exceptions[0]) if isinstance(failure, ExceptionGroup) else failure


def _not_written(request: MountRequest, name: str, error: OSError) -> TdefsError:
    return TdefsError(
        Exit.OS_ERROR,
        f'could not write "{request.volume.private / name}": {error.strerror}',
        hint="the volume's own directory must be writable, and what is in it files",
    )

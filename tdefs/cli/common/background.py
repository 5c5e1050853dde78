"""Going to the background: the parent returns when the daemon serves, or says why it does not."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from tdefs.errors import Exit, TdefsError, from_os_error

_READY = {"ready": True}


def run_in_background(work: Callable[[Callable[[], None]], None], *, keep: int, check: Callable[[], None]) -> None:
    """Fork; the child runs *work*, which gets a function to call once it serves; the parent waits for that.

    The child keeps only the descriptors *keep* and the standard ones. It calls *check* each time after it has
    closed or replaced descriptors.

    :raises TdefsError: what *work* raised before it served, or MOUNT_FAILED if the child died.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(work, writing, keep, check)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    if said != json.dumps(_READY).encode():
        os.waitpid(child, 0)
    if not said:
        raise TdefsError(Exit.MOUNT_FAILED, "the daemon died before it served", hint="see its log")
    report = json.loads(said)
    if report != _READY:
        raise TdefsError(
            Exit(report["exit_code"]), report["message"], detail=report["detail"], hint=report["hint"]
        )


def _run_child(
    work: Callable[[Callable[[], None]], None], writing: int, keep: int, check: Callable[[], None]
) -> None:
    """Detach from the terminal, run *work*, and never return."""
    code = Exit.OK
    reported = False

    def report(what: dict[str, object]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            os.write(writing, json.dumps(what).encode())
            os.close(writing)

    def ready() -> None:
        # until now errors of libfuse went to the user's terminal
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (1, 2):
            os.dup2(null, standard)
        os.close(null)
        check()
        report(dict(_READY))

    try:
        _close_all_but({writing, keep})
        os.setsid()
        # there is no terminal to lose; once the mount serves, SIGHUP reloads the policy
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        check()
        work(ready)
    except (TdefsError, OSError) as error:
        known = error if isinstance(error, TdefsError) else from_os_error(error)
        code = known.exit_code
        report({"exit_code": code, "message": known.message, "detail": known.detail, "hint": known.hint})
    except BaseException as error:
        code = Exit.UNEXPECTED
        text = f"unexpected error: {type(error).__name__}"
        report({"exit_code": code, "message": text, "detail": "", "hint": "see the daemon's log"})
    finally:
        os._exit(code)


def _close_all_but(keep: set[int]) -> None:
    """Close the descriptors that the caller's shell left open: they would hold its files and pipes open."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            with suppress(OSError):
                os.close(fd)

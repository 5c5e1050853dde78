"""Asking the process that has the token's module: it answers, or is ended when its time is over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from tdefs.errors import Exit, TdefsError
from tdefs.keys.sources.pkcs11.answers import unavailable
from tdefs.keys.sources.pkcs11.request import Request, load_error


def ask(request: Request, timeout_seconds: float) -> dict[str, Any]:
    """Return the answer to ``request``.

    Raises what the process raised: UnreachableError only if nothing was tried with the PIN. A module that does not
    answer in time is KEY_SERVER_UNREACHABLE without another try, as it may have been about to refuse the PIN.
    """
    # -I: nothing is imported from the directory in which somebody happens to call tdefs, nor from PYTHONPATH
    command = [sys.executable, "-I", "-m", "tdefs.keys.sources.pkcs11.token"]
    try:
        done = subprocess.run(
            command,
            input=request.dump(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what modules print may hold anything
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    # Outside of the handler: its exception holds what was sent, or read so far.
    if done is None:
        raise TdefsError(
            Exit.KEY_SERVER_UNREACHABLE,
            f"the PKCS#11 module did not answer within {timeout_seconds:g} s",
            detail=f'"{request.module}" was ended while it was to {request.operation}',
            hint="is the token reachable? timeout_seconds gives it more time",
        )
    if done.returncode < 0:
        number = -done.returncode
        reason = signal.strsignal(number) or f"signal {number}"
        raise unavailable(f'the PKCS#11 module "{request.module}" crashed', reason)
    said = _read(done.stdout)
    if said is None:
        raise unavailable(f'the process with the PKCS#11 module "{request.module}" failed')
    if "error" in said:
        raise load_error(said["error"])
    return said


def _read(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None

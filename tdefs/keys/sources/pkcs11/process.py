"""Asking the process that has the token's module: it answers, or is ended when its time is over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tdefs.keys.failures import LostError, UnavailableError
from tdefs.keys.sources.asking import Service
from tdefs.keys.sources.pkcs11.request import Request, load_error

Result = TypeVar("Result")
#: Has the token do one thing, and returns its answer.
Ask = Callable[[Request], dict[str, Any]]


@dataclass(frozen=True)
class TokenService(Service[Ask]):
    """A token, asked by processes that live for one operation."""

    name: str
    timeout_seconds: int

    @property
    def title(self) -> str:
        """See Service."""
        return f'the token "{self.name}"'

    def once(self, call: Callable[[Ask], Result], purpose: str, until: float) -> Result:
        """See Service."""
        del purpose, until
        return call(lambda request: ask(request, self.timeout_seconds))


def ask(request: Request, timeout_seconds: float) -> dict[str, Any]:
    """Return the answer to ``request``.

    Raises what the process raised: UnreachableError only if nothing was tried with the PIN.

    :raises LostError: the module does not answer in time. It may have been about to refuse the PIN, so it is not
        asked again.
    """
    # -I: nothing is imported from the current directory, nor from PYTHONPATH
    command = [sys.executable, "-I", "-m", "tdefs.keys.sources.pkcs11.token"]
    try:
        done = subprocess.run(
            command,
            input=request.dump(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a module may print anything
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    # Outside of the handler: its exception contains what was sent, and what was read so far.
    if done is None:
        raise LostError(
            f"the PKCS#11 module did not answer within {timeout_seconds:g} s",
            f'"{request.module}" was ended while it was to {request.operation}',
            "is the token reachable? timeout_seconds gives it more time",
        )
    if done.returncode < 0:
        number = -done.returncode
        reason = signal.strsignal(number) or f"signal {number}"
        raise UnavailableError(f'the PKCS#11 module "{request.module}" crashed', reason)
    said = _read(done.stdout)
    if said is None:
        raise UnavailableError(f'the process with the PKCS#11 module "{request.module}" failed')
    if "error" in said:
        raise load_error(said["error"])
    return said


def _read(text: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None

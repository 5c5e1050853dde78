"""Asking the daemon over its control socket: one line of JSON asks, one line of JSON answers.

The daemon's end is in daemon/control_server.py, so a command that asks need not import the daemon's modules.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Collection
from errno import ETIMEDOUT
from pathlib import Path
from typing import Any

from tdefs.daemon.status import DaemonStatus, MalformedStatusError
from tdefs.data.read_only import control_places
from tdefs.errors import Exit, TdefsError
from tdefs.private import UntrustedError, own_place
from tdefs.volume.description import Volume

#: How long either end waits for the other.
TIMEOUT_SECONDS = 5
_MAX_ANSWER = 1 << 20
_RETRY_SECONDS = 0.01
#: The kernel's struct ucred (unix(7)): process, user, group.
_CREDENTIALS = struct.Struct("3i")


class StrangerError(Exception):
    """A process listens on the control socket whose user may not be that of the daemon."""

    def __init__(self, user: int) -> None:
        super().__init__(f"a process of user {user} listens on the control socket")


def ask(
    volume: Volume,
    name: str,
    *,
    only_of: Collection[int] | None = None,
    seconds: float | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """Ask the daemon of *volume*; ``None`` if there is none, or it does not answer this user in time.

    :param seconds: the time that the daemon has for its answer; ``TIMEOUT_SECONDS`` if none is given.
    :param only_of: the users whose process may get the request, since others may be able to write to the volume.
    :raises StrangerError: a process of another user listens; it got nothing.
    """
    seconds = TIMEOUT_SECONDS if seconds is None else seconds
    for path in (volume.control_socket, *control_places(volume.backing)):
        found = _ask_at(path, {"request": name, **more}, only_of, seconds)
        if found is not None:
            return found
    return None


def ask_status(volume: Volume, *, only_of: Collection[int] | None = None) -> DaemonStatus | None:
    """Return the status of the daemon of *volume*; as :func:`ask`, and ``None`` if the answer is not a status."""
    try:
        return DaemonStatus.from_json(ask(volume, "status", only_of=only_of))
    except MalformedStatusError:
        return None  # what listens there is no daemon of this version


def _ask_at(
    path: Path, request: dict[str, Any], only_of: Collection[int] | None, seconds: float
) -> dict[str, Any] | None:
    try:
        with (
            own_place(path) as directory,
            directory.socket_address(path.name) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
        ):
            deadline = time.monotonic() + seconds
            _wait_until(client, deadline)
            _connect(client, address, deadline)
            if only_of is not None and (user := _listener(client)) not in only_of:
                raise StrangerError(user)
            # the limit of time is for all of it together
            client.sendall(json.dumps(request).encode() + b"\n")
            reply = b""
            while not reply.endswith(b"\n") and len(reply) < _MAX_ANSWER:
                # a daemon that sends a byte now and then must not hold up the command for ever
                _wait_until(client, deadline)
                received = client.recv(65536)
                if not received:
                    break
                reply += received
        found = json.loads(reply)
    except (OSError, ValueError, RecursionError, UntrustedError):
        return None  # what lies there is no daemon
    return found if isinstance(found, dict) else None


def as_refusal(error: TdefsError) -> dict[str, Any]:
    """Return the part of an answer that says why a request was refused."""
    return {"exit_code": error.exit_code, "message": error.message, "detail": error.detail, "hint": error.hint}


def from_refusal(refusal: Any) -> TdefsError:
    """Return the error that :func:`as_refusal` passed on; any other value becomes an error, too."""
    try:
        texts = [str(refusal[name]) for name in ("message", "detail", "hint")]
        return TdefsError(Exit(refusal["exit_code"]), texts[0], detail=texts[1], hint=texts[2])
    except (KeyError, TypeError, ValueError):
        return TdefsError(Exit.DAEMON_NOT_TOLD, "the daemon refused the request, and gave no reason")


def _wait_until(client: socket.socket, deadline: float) -> None:
    """Give the next operation on *client* only the time that is left.

    :raises TimeoutError: no time is left.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(ETIMEDOUT, os.strerror(ETIMEDOUT))
    client.settimeout(left)


def _connect(client: socket.socket, address: str, deadline: float) -> None:
    """Connect. If too many clients wait already, a Unix socket refuses one with a time limit: try again then."""
    while True:
        try:
            client.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _listener(client: socket.socket) -> int:
    """Return the user of the process that listens at the other end, as the kernel noted it at its listen(2)."""
    user: int
    _, user, _ = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user

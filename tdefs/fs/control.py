"""Asking the daemon over its control socket: one line of JSON asks, one line of JSON answers.

The daemon's end is in control_server.py, so that who asks need not load what the daemon runs on.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from tdefs.volume import Volume

#: How long either end waits for the other.
TIMEOUT_SECONDS = 5
_MAX_ANSWER = 1 << 20
_RETRY_SECONDS = 0.01


def ask(volume: Volume, name: str, **more: Any) -> dict[str, Any] | None:
    """Ask the daemon of *volume*; ``None`` if there is none, or it does not answer this user in time."""
    try:
        directory = os.open(volume.private, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(TIMEOUT_SECONDS)
            _connect(client, f"/proc/self/fd/{directory}/{volume.control_socket.name}")
            client.sendall(json.dumps({"request": name, **more}).encode() + b"\n")
            reply = b""
            while not reply.endswith(b"\n") and len(reply) < _MAX_ANSWER:
                received = client.recv(65536)
                if not received:
                    break
                reply += received
        found = json.loads(reply)
    except (OSError, ValueError):
        return None
    finally:
        os.close(directory)
    return found if isinstance(found, dict) else None


def _connect(client: socket.socket, address: str) -> None:
    """Connect; where a Unix socket refuses because too many wait already, a client with a time-out must retry."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            client.connect(address)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return

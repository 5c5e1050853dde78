"""The daemon's end of the control socket (see control.py for the other one).

No secret passes through it in the clear: new keys are encrypted (see tdefs.keys.ring_message).
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import trio

from tdefs.control import TIMEOUT_SECONDS
from tdefs.private import UntrustedError, own_place
from tdefs.reserve import with_own_rights

log = logging.getLogger(__name__)

_MAX_REQUEST = 1 << 20
_PIECE = 65536
# Each connection holds one of the descriptors that files need. If there are so many, a new client takes the place
# of the one that has waited longest.
_MOST_CONNECTIONS = 16
_BACKLOG = 64

#: By the name of a request, the function that answers it; it gets the whole request.
AnswerTable = Mapping[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]]


async def serve_control(path: Path, answers: AnswerTable) -> None:
    """Answer requests ``{"request": NAME}`` at *path* until cancelled, by calling the function of that name."""
    with ExitStack() as stack:
        try:
            # trio's own bind would need a thread
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            directory = stack.enter_context(own_place(path))
            with with_own_rights():
                directory.bind(listener, path.name)
            # if something else lies there by then, or the disk is read-only, the mount goes on all the same
            stack.callback(directory.unbind, path.name)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except (OSError, UntrustedError) as error:
            # with a full disk, or a directory in its place, the mount is served all the same
            log.warning("no control socket, so 'tdefs status' will know less: %s", error)
            return

        connections: list[trio.CancelScope] = []

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                with trio.CancelScope() as connection:
                    connections.append(connection)
                    if len(connections) > _MOST_CONNECTIONS:
                        connections[0].cancel()
                        del connections[0]
                    try:
                        await _answer(stream, answers)
                    finally:
                        with suppress(ValueError):
                            connections.remove(connection)

        await trio.serve_listeners(answer, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


async def _answer(stream: trio.SocketStream, answers: AnswerTable) -> None:
    """Serve one request. No request may end the daemon."""
    request = bytearray()
    try:
        with trio.move_on_after(TIMEOUT_SECONDS) as receiving:
            while b"\n" not in request and len(request) <= _MAX_REQUEST:
                received = await stream.receive_some(_PIECE)
                if not received:
                    break
                request += received
        if receiving.cancelled_caught:
            return
        reply = await reply_to(bytes(request), answers)
        with trio.move_on_after(TIMEOUT_SECONDS):
            await stream.send_all(json.dumps(reply).encode() + b"\n")
    except trio.BrokenResourceError:
        log.debug("the client at the control socket went away")
    except Exception:
        log.exception("unexpected error in a control request")


async def reply_to(request: bytes, answers: AnswerTable) -> dict[str, Any]:
    """Return the answer to one request; the answer to anything else is an error."""
    try:
        asked = json.loads(request)
        answer = answers[asked["request"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": "unknown request"}
    return await answer(asked)

"""A TLS connection with one KMIP server: the server is checked, and each wait ends."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tdefs.errors import TdefsError
from tdefs.keys.failures import RefusedError, UnreachableError, UntrustedServerError

#: The beginning of a KMIP reply: the tag Response Message, and the type Structure. 4 bytes of length follow.
_RESPONSE = bytes.fromhex("42007b01")
_HEADER_BYTES = 8
_MAX_REPLY_BYTES = 1 << 20
#: OpenSSL's names of the alerts by which a server refuses the client's certificate.
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server; ``host`` is a name or an IP address, as in its certificate."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Connection:
    """One connection; use it in a ``with`` block."""

    def __init__(self, server: Server, context: ssl.SSLContext, timeout_seconds: float) -> None:
        """Connect. That may take ``timeout_seconds``, and so may each exchange of messages.

        :raises UnreachableError: there is no answer in time.
        :raises UntrustedServerError: it is not the server that was meant.
        :raises RefusedError: the server does not accept the client certificate.
        """
        self.server = server
        self._timeout = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        try:
            raw = socket.create_connection((server.host, server.port), self._left())
        except (OSError, UnicodeError) as error:
            raise self._unreachable(error) from None
        try:
            raw.settimeout(self._left())
            self._socket = context.wrap_socket(raw, server_hostname=server.host)
        except (OSError, ValueError) as error:
            raw.close()
            raise self._explained(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> bytes:
        """Return the bytes of the reply to a request.

        :raises TdefsError: as connecting.
        """
        self._deadline = time.monotonic() + self._timeout
        try:
            self._send(request)
            header = self._receive(_HEADER_BYTES)
            (length,) = struct.unpack(">I", header[4:])
            if not header.startswith(_RESPONSE) or length > _MAX_REPLY_BYTES:
                raise not_understood(self.server)
            return header + self._receive(length)
        except OSError as error:
            raise self._explained(error) from None

    def _send(self, request: bytes) -> None:
        self._socket.settimeout(self._left())
        try:
            self._socket.sendall(request)
        except (ConnectionError, ssl.SSLEOFError):
            # With TLS 1.3 a server refuses the certificate after the handshake, and closes; reading gives its
            # reason.
            self._receive(1)
            raise

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            self._socket.settimeout(self._left())
            part = self._socket.recv(size - len(received))
            if not part:
                raise ConnectionResetError
            received += part
        return bytes(received)

    def _left(self) -> float:
        """Return the seconds that are left.

        :raises TimeoutError: no time is left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _explained(self, error: OSError | ValueError) -> TdefsError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UntrustedServerError(
                f"the certificate of the key server {self.server} is not trusted",
                error.verify_message,
                "is it the server that was meant? its certificate must be valid, signed by what ca names, "
                "and have the host of servers among its subject alternative names",
            )
        if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
            return self._unreachable(error)
        reason = error.reason or "TLS"
        if "ALERT" in reason and any(word in reason for word in _REFUSALS):
            return RefusedError(
                f"the key server {self.server} does not accept the client certificate",
                f"its TLS alert is: {_words(reason)}",
                "has it expired ('tdefs doctor'), and does the server know who has signed it?",
            )
        return UntrustedServerError(
            f"the key server {self.server} does not speak TLS as is demanded",
            _words(reason),
            "it must offer TLS 1.2 or 1.3, at least the configured tls_minimum",
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {self._timeout:.0f} s"
        elif isinstance(error, ConnectionResetError | ssl.SSLEOFError | BrokenPipeError):
            reason = "it closed the connection"
        else:
            reason = getattr(error, "strerror", None) or "its name cannot be looked up"
        return UnreachableError(f"the key server {self.server} is not reachable", reason.lower())


def not_understood(server: Server) -> UntrustedServerError:
    """Return the error for a reply that is no KMIP message, or does not answer the request."""
    return UntrustedServerError(
        f"the reply of the key server {server} could not be understood",
        "it is not KMIP, or not the reply to the request",
        "is it the port of its KMIP service, and does it speak the configured kmip_version?",
    )


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")

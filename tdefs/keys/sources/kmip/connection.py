"""A TLS connection with one KMIP server, on which who answers is checked, and every wait ends."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from types import TracebackType
from typing import Self

from tdefs.errors import Exit, TdefsError
from tdefs.keys.attempts import UnreachableError
from tdefs.keys.private_files import read_file, unfit
from tdefs.keys.sources.kmip.fields import KmipSettings, Server

#: What a KMIP reply begins with: the tag Response Message, and the type Structure; then 4 bytes of length.
_RESPONSE = bytes.fromhex("42007b01")
_HEADER_BYTES = 8
_MAX_REPLY_BYTES = 1 << 20
#: How OpenSSL names the alerts by which a server says that it does not take the client's certificate.
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")


def tls_context(settings: KmipSettings) -> ssl.SSLContext:
    """Return what checks the server and shows it the client's certificate.

    Not ``ssl.create_default_context``: that writes the keys of each session to a file if the environment's
    SSLKEYLOGFILE names one. Raises TdefsError(KEY_SOURCE_UNAVAILABLE).
    """
    # checks certificate and host name
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.tls_minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    # the names that count are the subject alternative names (RFC 9525)
    context.hostname_checks_common_name = False
    # OpenSSL opens the files by their names; reading them first tells what is wrong with which
    read_file(settings.ca, "ca", secret=False)
    try:
        context.load_verify_locations(settings.ca)
    except OSError:
        raise unfit(settings.ca, "ca", "it holds no certificate in PEM") from None
    _load_client_certificate(context, settings)
    return context


def _load_client_certificate(context: ssl.SSLContext, settings: KmipSettings) -> None:
    password = b""
    if settings.private_key_password_file is not None:
        password = read_file(settings.private_key_password_file, "password", secret=True).removesuffix(b"\n")
    read_file(settings.certificate, "certificate", secret=False)
    read_file(settings.private_key, "private key", secret=True)
    try:
        # an empty password: without one OpenSSL would ask for it on the terminal
        context.load_cert_chain(settings.certificate, settings.private_key, password)
    except (OSError, ValueError):
        raise TdefsError(
            Exit.KEY_SOURCE_UNAVAILABLE,
            f'certificate "{settings.certificate}" and private key "{settings.private_key}" cannot be used',
            hint="both must be in PEM and belong together; private_key_password_file names the password's file",
        ) from None


class UntrustedError(TdefsError):
    """Who answers is not the server that was meant; another server may be."""

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(Exit.KEY_SERVER_UNTRUSTED, message, detail=detail, hint=hint)


class Connection:
    """One connection; use it in a ``with`` block."""

    def __init__(self, server: Server, context: ssl.SSLContext, timeout_seconds: float) -> None:
        """Connect, which may take ``timeout_seconds``, as may each exchange of messages.

        Raises UnreachableError, UntrustedError, TdefsError(KEY_SERVER_REFUSED).
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
        """Return the reply to a request, as it came. Raises what connecting raises."""
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
            # With TLS 1.3 a server that refuses the certificate says so after the handshake, and closes; reading
            # what it said gives the reason.
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
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _explained(self, error: OSError | ValueError) -> TdefsError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UntrustedError(
                f"the certificate of the key server {self.server} is not trusted",
                detail=error.verify_message,
                hint="is it the server that was meant? its certificate must be valid, signed by what ca names, "
                "and have the host of servers among its subject alternative names",
            )
        if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError):
            return self._unreachable(error)
        reason = error.reason or "TLS"
        if "ALERT" in reason and any(word in reason for word in _REFUSALS):
            return TdefsError(
                Exit.KEY_SERVER_REFUSED,
                f"the key server {self.server} does not accept the client certificate",
                detail=f"its TLS alert is: {_words(reason)}",
                hint="has it expired ('tdefs doctor'), and does the server know who has signed it?",
            )
        return UntrustedError(
            f"the key server {self.server} does not speak TLS as is demanded",
            detail=_words(reason),
            hint="it must offer TLS 1.2 or 1.3, at least the configured tls_minimum",
        )

    def _unreachable(self, error: Exception) -> UnreachableError:
        if isinstance(error, TimeoutError):
            reason = f"no answer within {self._timeout:.0f} s"
        elif isinstance(error, ConnectionResetError | ssl.SSLEOFError | BrokenPipeError):
            reason = "it closed the connection"
        else:
            reason = getattr(error, "strerror", None) or "its name cannot be looked up"
        return UnreachableError(f"the key server {self.server} is not reachable", detail=reason.lower())


def not_understood(server: Server) -> UntrustedError:
    """Return the error for a reply that is no KMIP message, or none that answers what was asked."""
    return UntrustedError(
        f"the reply of the key server {server} could not be understood",
        detail="it is not KMIP, or not the reply to what was asked",
        hint="is it the port of its KMIP service, and does it speak the configured kmip_version?",
    )


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")

"""What the failure of a request to Vault means to the user.

No text of a server or a library goes into a message, since it could contain a secret. Only words of this module
do.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import hvac.exceptions as vault
import requests

from tdefs.errors import TdefsError
from tdefs.keys.failures import RefusedError, UnreachableError, UntrustedServerError

#: The server is there, but cannot answer now. 412: the last write has not reached this node yet.
_TRY_AGAIN = {
    vault.VaultDown: "it is sealed, or a standby without an active server",
    vault.BadGateway: "the proxy in front of it does not reach it",
    vault.InternalServerError: "it reports an internal error",
    vault.RateLimitExceeded: "it limits the rate of requests",
    vault.PreconditionFailed: "it has not yet caught up with its cluster",
    vault.VaultNotInitialized: "it is not initialized",
}
_BROKEN_OFF = (
    *(ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError),
    *(ConnectionResetError, BrokenPipeError),
)
_SEALED = "Vault is sealed"


def of_transport(error: requests.RequestException, server: str, timeout_seconds: int) -> TdefsError:
    """Return the error for a request that got no answer."""
    causes = list(_causes(error))
    if any(isinstance(one, ssl.SSLError) and not isinstance(one, _BROKEN_OFF) for one in causes):
        return _untrusted(causes, server)
    if isinstance(error, requests.Timeout):
        return _unreachable(server, f"no answer within {timeout_seconds} s")
    if any(isinstance(one, socket.gaierror) for one in causes):
        return _unreachable(server, "the name of its host is unknown")
    if any(isinstance(one, _BROKEN_OFF) for one in causes):
        # Its TLS alert is lost if it closes the connection while the client still sends the request.
        return _unreachable(server, "it broke off, as a server does that wants another client certificate")
    reasons = (one.strerror for one in causes if isinstance(one, OSError) and one.strerror)
    return _unreachable(server, next(reasons, "the connection broke").lower())


def of_answer(error: vault.VaultError, server: str, rights: str, login_refused: str) -> TdefsError:
    """Return the error for an answer that no kind of key source explains better.

    :param rights: the rights that a policy must give to the client.
    :param login_refused: the other possible reasons.
    """
    for kind, reason in _TRY_AGAIN.items():
        if isinstance(error, kind):
            return _unreachable(server, "it is sealed" if error.errors == [_SEALED] else reason)
    if isinstance(error, vault.Forbidden | vault.Unauthorized):
        return RefusedError(
            f"{server} denies permission", f"either {login_refused}; or no policy gives it {rights}"
        )
    if isinstance(error, vault.InvalidPath):
        detail = f"there is no such mount or namespace; it was asked for {rights}"
        return RefusedError(f"{server} does not know what it is asked for", detail)
    return RefusedError(f"{server} does not accept the request", f"it was asked for {rights}")


def of_login(error: vault.VaultError, server: str, auth_path: str, login_refused: str) -> TdefsError:
    """Return the error for a login that failed."""
    if isinstance(error, vault.InvalidRequest | vault.InvalidPath | vault.Forbidden | vault.Unauthorized):
        # Vault does not show a stranger which of these it is.
        return RefusedError(
            f"{server} refuses the login",
            f"{login_refused}; or there is no auth method at auth/{auth_path}, or no such namespace",
        )
    return of_answer(error, server, f"update on auth/{auth_path}/login", login_refused)


def _unreachable(server: str, reason: str) -> UnreachableError:
    return UnreachableError(f"{server} does not answer", reason)


def _untrusted(causes: list[BaseException], server: str) -> TdefsError:
    found = [one for one in causes if isinstance(one, ssl.SSLCertVerificationError)]
    # The words of OpenSSL for what is wrong with a certificate quote the host name at most.
    detail = found[0].verify_message if found else "no TLS version in common, or a client certificate is needed"
    return UntrustedServerError(
        f"{server} cannot be trusted", detail.rstrip("."), "check address, ca and client certificate"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and those that it wraps: requests and urllib3 wrap as an argument, or by raising from."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        one = left.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]

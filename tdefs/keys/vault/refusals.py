"""What the failure of a request to Vault means to the user.

Nothing that a server or a library says goes into a message: only what is known to hold no secret.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import hvac.exceptions as vault
import requests

from tdefs.errors import Exit, TdefsError
from tdefs.keys.attempts import UnreachableError

#: The server is there, but cannot answer now. 412: what was written has not reached this node yet.
_TRY_AGAIN = {
    vault.VaultDown: "it is sealed, or a standby without an active server",
    vault.BadGateway: "what stands before it does not reach it",
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
    """Return what to tell of a request that got no answer."""
    causes = list(_causes(error))
    if any(isinstance(one, ssl.SSLError) and not isinstance(one, _BROKEN_OFF) for one in causes):
        return _untrusted(causes, server)
    if isinstance(error, requests.Timeout):
        return unreachable(server, f"no answer within {timeout_seconds} s")
    if any(isinstance(one, socket.gaierror) for one in causes):
        return unreachable(server, "the name of its host is unknown")
    if any(isinstance(one, _BROKEN_OFF) for one in causes):
        # Its TLS alert is lost if it closes the connection while the request is still being sent to it.
        return unreachable(server, "it broke off, as one does that wants another client certificate")
    reasons = (one.strerror for one in causes if isinstance(one, OSError) and one.strerror)
    return unreachable(server, next(reasons, "the connection broke").lower())


def of_answer(error: vault.VaultError, server: str, rights: str, login_refused: str) -> TdefsError:
    """Return what to tell of an answer that no kind of key source explains better.

    ``rights`` are those that its policy must give, and ``login_refused`` is what else it may be.
    """
    for kind, reason in _TRY_AGAIN.items():
        if isinstance(error, kind):
            return unreachable(server, "it is sealed" if error.errors == [_SEALED] else reason)
    if isinstance(error, vault.Forbidden | vault.Unauthorized):
        return refused(f"{server} denies permission", f"either {login_refused}; or no policy gives it {rights}")
    if isinstance(error, vault.InvalidPath):
        detail = f"there is no such mount or namespace; it was asked for {rights}"
        return refused(f"{server} does not know what it is asked for", detail)
    return refused(f"{server} does not accept the request", f"it was asked for {rights}")


def of_login(error: vault.VaultError, server: str, auth_path: str, login_refused: str) -> TdefsError:
    """Return what to tell of a login that failed."""
    if isinstance(error, vault.InvalidRequest | vault.InvalidPath | vault.Forbidden | vault.Unauthorized):
        # Vault does not tell strangers which of them it is.
        return refused(
            f"{server} refuses the login",
            f"{login_refused}; or there is no auth method at auth/{auth_path}, or no such namespace",
        )
    return of_answer(error, server, f"update on auth/{auth_path}/login", login_refused)


def unreachable(server: str, reason: str) -> UnreachableError:
    """Return the error that has the server asked again."""
    return UnreachableError(f"{server} does not answer", detail=reason)


def refused(message: str, detail: str, *, hint: str = "") -> TdefsError:
    """Return the error for a server that does not accept who asks, or what."""
    return TdefsError(Exit.KEY_SERVER_REFUSED, message, detail=detail, hint=hint)


def unusable(message: str, detail: str = "", *, hint: str = "") -> TdefsError:
    """Return the error for a wrapping key that is not there, or no longer."""
    return TdefsError(Exit.WRAPPING_KEY_UNUSABLE, message, detail=detail, hint=hint)


def _untrusted(causes: list[BaseException], server: str) -> TdefsError:
    found = [one for one in causes if isinstance(one, ssl.SSLCertVerificationError)]
    # OpenSSL's words for what is wrong with a certificate, which quote the host name at most.
    detail = found[0].verify_message if found else "no TLS version in common, or a client certificate is needed"
    return TdefsError(
        Exit.KEY_SERVER_UNTRUSTED,
        f"{server} cannot be trusted",
        detail=detail.rstrip("."),
        hint="check address, ca and client certificate",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return the error and what it was made of: requests and urllib3 wrap as an argument, or by raising from."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        one = left.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]

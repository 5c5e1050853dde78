"""Why a service or a device does not give a secret: one class for each reason, with its exit code."""

from __future__ import annotations

from tdefs.errors import DistinguishedError, Exit


class SourceError(DistinguishedError):
    """A key source, a TPM or a host key does not give the secret."""

    def __init__(self, message: str, detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail=detail, hint=hint)


class UnavailableError(SourceError):
    """This host lacks something, such as a program, a file, a library or a device."""

    code = Exit.KEY_SOURCE_UNAVAILABLE


class UnreachableError(SourceError):
    """There is no answer; another attempt may succeed."""

    code = Exit.KEY_SERVER_UNREACHABLE

    def __init__(self, message: str, detail: str = "", hint: str = "") -> None:
        usual = "start it, or unlock with another protector; what is mounted goes on without it"
        super().__init__(message, detail, hint or usual)


class LostError(SourceError):
    """There was no answer after something was asked that must not be asked twice, such as to try a PIN."""

    code = Exit.KEY_SERVER_UNREACHABLE


class UntrustedServerError(SourceError):
    """The server that answers is not the one that was meant."""

    code = Exit.KEY_SERVER_UNTRUSTED


class RefusedError(SourceError):
    """The service does not accept the client, or what the client asks."""

    code = Exit.KEY_SERVER_REFUSED


class UnusableError(SourceError):
    """The wrapping key is not there, or it is disabled, revoked, destroyed or of the wrong kind."""

    code = Exit.WRAPPING_KEY_UNUSABLE

"""The files with which a Vault client shows who it is: read, and refused where they are not fit for it."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tdefs.errors import Exit, TdefsError

_MAX_BYTES = 1 << 16
#: What a token, role id or secret id is made of. It goes into a header, so no line may end in it.
_CREDENTIAL = re.compile(rb"[!-~]{1,8192}")


def read_credential(path: Path, what: str, *, secret: bool = True) -> str:
    """Return the one word in the file, which is a ``what`` such as a token.

    Raises TdefsError(KEY_SOURCE_UNAVAILABLE) if it cannot be read, or is ``secret`` and open to others.
    """
    found = _read(path, what, secret=secret).strip()
    if not _CREDENTIAL.fullmatch(found):
        detail = "it is empty" if not found else "it holds more than one word, or characters that belong in none"
        raise _unfit(path, what, detail)
    return found.decode("ascii")


def check_ca(path: Path) -> None:
    """Raise TdefsError(KEY_SOURCE_UNAVAILABLE) unless the file has certificates in PEM."""
    _certificates(path, "CA")


def check_client_certificate(certificate: Path, private_key: Path) -> None:
    """Raise TdefsError(KEY_SOURCE_UNAVAILABLE) unless the two, in PEM, belong together and need no password."""
    # OpenSSL would ask for a password on the terminal, and a daemon has none.
    public_key = _certificates(certificate, "certificate")[0].public_key()
    if _private_key(private_key).public_key() != public_key:
        raise _unfit(private_key, "private key", f'it is not that of the certificate "{certificate}"')


def _private_key(path: Path) -> PrivateKeyTypes:
    data = _read(path, "private key", secret=True)
    detail = "it holds no private key in PEM"
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        detail = "it is encrypted with a password"
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise _unfit(path, "private key", detail)


def _certificates(path: Path, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, what, secret=False))
    except ValueError:
        raise _unfit(path, what, "it holds no certificate in PEM") from None


def _read(path: Path, what: str, *, secret: bool) -> bytes:
    try:
        # Nonblocking, so that a FIFO in its place is refused below instead of waited on.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unfit(path, what, "it is no regular file")
            if secret:
                _check_private(path, what, status)
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _unfit(path, what, error.strerror or "") from None
    if len(data) > _MAX_BYTES:
        raise _unfit(path, what, f"it has more than {_MAX_BYTES} bytes")
    return data


def _check_private(path: Path, what: str, status: os.stat_result) -> None:
    quoted = shlex.quote(str(path))
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        hint = f"chown {os.geteuid()} {quoted} && chmod 600 {quoted}"
        raise _unfit(path, what, f"it belongs to another user, {status.st_uid}", hint)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise _unfit(path, what, "group or others have access to it", f"chmod 600 {quoted}")


def _unfit(path: Path, what: str, detail: str, hint: str = "") -> TdefsError:
    return TdefsError(
        Exit.KEY_SOURCE_UNAVAILABLE, f'the {what} file "{path}" cannot be used', detail=detail, hint=hint
    )

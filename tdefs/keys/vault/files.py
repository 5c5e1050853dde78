"""The files with which a Vault client shows who it is: read, and refused where they are not fit for it."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tdefs.keys.pem import read_certificates
from tdefs.keys.private_files import read_file, unfit

#: What a token, role id or secret id is made of. It goes into a header, so no line may end in it.
_CREDENTIAL = re.compile(rb"[!-~]{1,8192}")


def read_credential(path: Path, what: str, *, secret: bool = True) -> str:
    """Return the one word in the file, which is a ``what`` such as a token.

    Raises TdefsError(KEY_SOURCE_UNAVAILABLE) if it cannot be read, or is ``secret`` and open to others.
    """
    found = read_file(path, what, secret=secret).strip()
    if not _CREDENTIAL.fullmatch(found):
        detail = "it is empty" if not found else "it holds more than one word, or characters that belong in none"
        raise unfit(path, what, detail)
    return found.decode("ascii")


def check_ca(path: Path) -> None:
    """Raise TdefsError(KEY_SOURCE_UNAVAILABLE) unless the file has certificates in PEM."""
    _certificates(path, "CA")


def check_client_certificate(certificate: Path, private_key: Path) -> None:
    """Raise TdefsError(KEY_SOURCE_UNAVAILABLE) unless the two, in PEM, belong together and need no password."""
    # OpenSSL would ask for a password on the terminal, and a daemon has none.
    public_key = _certificates(certificate, "certificate")[0].public_key()
    if _private_key(private_key).public_key() != public_key:
        raise unfit(private_key, "private key", f'it is not that of the certificate "{certificate}"')


def _private_key(path: Path) -> PrivateKeyTypes:
    data = read_file(path, "private key", secret=True)
    detail = "it holds no private key in PEM"
    try:
        return load_pem_private_key(data, None)
    except TypeError:
        detail = "it is encrypted with a password"
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise unfit(path, "private key", detail)


def _certificates(path: Path, what: str) -> list[x509.Certificate]:
    try:
        return read_certificates(read_file(path, what, secret=False))
    except ValueError:
        raise unfit(path, what, "it holds no certificate in PEM") from None

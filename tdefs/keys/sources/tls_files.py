"""The files by which a client of a server proves who it is and knows the server: CA, certificate, private key.

They are read and checked before a library gets their names: OpenSSL would ask for a password on the terminal, and
says little about what is wrong with a file.
"""

from __future__ import annotations

import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.utils import CryptographyDeprecationWarning

from tdefs.keys.failures import UnavailableError
from tdefs.keys.private_files import read_file, unfit
from tdefs.keys.sources.base import Certificate


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files, in PEM. A certificate and its private key are given together, or neither of them."""

    ca: Path | None
    certificate: Path | None
    private_key: Path | None
    password_file: Path | None = None

    def watched(self) -> list[Certificate]:
        """Return the certificate files. Each certificate in them may expire."""
        named = ((self.ca, "CA"), (self.certificate, "client certificate"))
        return [Certificate(path, role) for path, role in named if path is not None]

    def check(self) -> None:
        """Check that each file is fit, and that certificate and private key belong together.

        :raises UnavailableError: a file is not fit, or other users have access to the private key.
        :raises TdefsError: CONFIG_EXPOSED if other users could change a file.
        """
        if self.ca is not None:
            _certificates(self.ca, "CA")
        if self.certificate is not None and self.private_key is not None:
            public_key = _certificates(self.certificate, "certificate")[0].public_key()
            if _private_key(self.private_key, self._password()).public_key() != public_key:
                raise unfit(
                    self.private_key, "private key", f'it is not that of the certificate "{self.certificate}"'
                )

    def context(self, least: ssl.TLSVersion) -> ssl.SSLContext:
        """Return the context that checks the server and shows it the client's certificate. All files are needed.

        Not ``ssl.create_default_context``: that writes the keys of each session to the file that the variable
        SSLKEYLOGFILE names. Raises as :meth:`check`.
        """
        if self.ca is None or self.certificate is None or self.private_key is None:
            raise ValueError("CA, certificate and private key are needed")
        self.check()
        # checks the certificate and the host name
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = least
        # the names that count are the subject alternative names (RFC 9525)
        context.hostname_checks_common_name = False
        try:
            context.load_verify_locations(self.ca)
            # an empty password: without one OpenSSL would ask for it on the terminal
            context.load_cert_chain(self.certificate, self.private_key, self._password())
        except (OSError, ValueError):
            raise UnavailableError(
                f'CA "{self.ca}", certificate "{self.certificate}" and private key "{self.private_key}" cannot be'
                " used together"
            ) from None
        return context

    def _password(self) -> bytes:
        if self.password_file is None:
            return b""
        return read_file(self.password_file, "password", secret=True).removesuffix(b"\n")


def read_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the certificates in ``data``: one, a chain, or all authorities that a system trusts.

    :raises ValueError: there is none, or one that cannot be read.
    """
    with warnings.catch_warnings():
        # the bundle of a system has authorities that break some rule, and the user cannot mend them
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificates(data)


def _certificates(path: Path, what: str) -> list[x509.Certificate]:
    try:
        return read_certificates(read_file(path, what, secret=False))
    except ValueError:
        raise unfit(path, what, "it holds no certificate in PEM") from None


def _private_key(path: Path, password: bytes) -> PrivateKeyTypes:
    data = read_file(path, "private key", secret=True)
    detail = "it holds no private key in PEM"
    # first without the password: the library refuses one for a key that is not encrypted
    for one in (None, password) if password else (None,):
        try:
            return load_pem_private_key(data, one)
        except TypeError:
            detail = "it is encrypted with a password"
        except (ValueError, UnsupportedAlgorithm):
            pass
    raise unfit(path, "private key", detail)

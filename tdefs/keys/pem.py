"""Certificates in PEM, as key sources have them: one, a chain, or all authorities that a system trusts."""

from __future__ import annotations

import warnings

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning


def read_certificates(data: bytes) -> list[x509.Certificate]:
    """Return the certificates in ``data``. Raises ValueError if there is none, or one that cannot be read."""
    with warnings.catch_warnings():
        # in the bundle of a system are authorities that break some rule; who asks here cannot mend them
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificates(data)

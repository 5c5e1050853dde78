"""HKDF, the one function by which a key of one purpose gives keys of another."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def hkdf_sha256(secret: bytes, info: bytes, length: int) -> bytes:
    """Return ``length`` bytes of HKDF-SHA256 (RFC 5869) over ``secret``.

    There is no salt, which RFC 5869 defines as a salt of 32 zero bytes: every ``secret`` given here is
    uniformly random already, or the output of a password hash. ``info`` starts with a purpose string.
    """
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)

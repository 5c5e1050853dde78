"""Wrapping one 32-byte key under another with AES-256-GCM, bound to the place where the result is kept."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tdefs.keys.hierarchy import SECRET_BYTES

NONCE_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = NONCE_BYTES + SECRET_BYTES + TAG_BYTES


@dataclass(frozen=True)
class WrapContext:
    """What a wrapped key is and where it belongs, so that no two entries can be exchanged.

    ``volume_id`` is 16 bytes; ``purpose`` says what kind of wrapping this is; ``key_name`` and ``round``
    name the wrapped key (round 0 unless it is a data key); ``wrapped_by`` names the master key or the
    protector that wraps it. The texts are ASCII of at most 255 bytes.
    """

    volume_id: bytes
    purpose: str
    key_name: str
    round: int
    wrapped_by: str

    def to_bytes(self) -> bytes:
        """Return the canonical form: the AAD of the wrapping, also the ``info`` tail of derived keys.

        ASCII "tdefs v1 wrap" (13 bytes), the volume id (16), the round (unsigned 32 bit, little-endian),
        then purpose, key name and wrapper's name, each as one byte of length and its ASCII bytes.
        """
        texts = (text.encode("ascii") for text in (self.purpose, self.key_name, self.wrapped_by))
        return b"".join(
            (
                b"tdefs v1 wrap",
                self.volume_id,
                struct.pack("<I", self.round),
                *(struct.pack("<B", len(text)) + text for text in texts),
            )
        )


class UnwrapFailedError(Exception):
    """The wrapping key is not the right one, or the wrapped key or its context was altered."""


def wrap_secret(wrapping_key: bytes, secret: bytes, context: WrapContext) -> bytes:
    """Return ``secret`` (32 bytes) wrapped: nonce (12), ciphertext (32), tag (16), 60 bytes in all."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(wrapping_key).encrypt(nonce, secret, context.to_bytes())


def unwrap_secret(wrapping_key: bytes, wrapped: bytes, context: WrapContext) -> bytes:
    """Return the 32-byte secret that :func:`wrap_secret` wrapped in this ``context``.

    Raises UnwrapFailedError, also for a ``wrapped`` that is not 60 bytes.
    """
    if len(wrapped) != WRAPPED_BYTES:
        raise UnwrapFailedError
    nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
    try:
        return AESGCM(wrapping_key).decrypt(nonce, sealed, context.to_bytes())
    except InvalidTag:
        raise UnwrapFailedError from None

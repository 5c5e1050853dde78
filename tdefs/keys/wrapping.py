"""Deriving keys with HKDF, wrapping one 32-byte key under another with AES-256-GCM, and MACs with HMAC-SHA256.

A wrapped key is bound to the place where it is kept. Each kind of record that has a MAC has a purpose of its own,
and none of these begins another one.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12
TAG_BYTES = 16
WRAPPED_BYTES = NONCE_BYTES + 32 + TAG_BYTES

_STATE_PURPOSE = b"tdefs v1 volume state"


def hkdf_sha256(secret: bytes, info: bytes, length: int) -> bytes:
    """Return ``length`` bytes of HKDF-SHA256 (RFC 5869) over ``secret``.

    There is no salt, which RFC 5869 defines as a salt of 32 zero bytes: each ``secret`` given here is
    uniformly random already, or the output of a password hash. ``info`` starts with a purpose string.
    """
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(secret)


@dataclass(frozen=True)
class WrapContext:
    """What a wrapped key is and where it belongs, so that two entries cannot be exchanged.

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

    :raises UnwrapFailedError: it does not unwrap, or it does not have 60 bytes.
    """
    if len(wrapped) != WRAPPED_BYTES:
        raise UnwrapFailedError
    nonce, ciphertext = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
    try:
        return AESGCM(wrapping_key).decrypt(nonce, ciphertext, context.to_bytes())
    except InvalidTag:
        raise UnwrapFailedError from None


def derive_state_key(history_key: bytes) -> bytes:
    """Return the 32-byte key of the MACs over what a daemon writes down about its volume: session, manifest.

    HKDF-SHA256, input the 32 bytes of the history's key, no salt, ``info`` the 21 bytes of ASCII
    "tdefs v1 volume state", no terminator.
    """
    return hkdf_sha256(history_key, _STATE_PURPOSE, 32)


def make_mac(key: bytes, *pieces: bytes) -> bytes:
    """Return the 32-byte MAC over *pieces*, one after the other; the first one begins with the purpose."""
    return _hmac(key, pieces).finalize()


def fits_mac(mac: bytes, key: bytes, *pieces: bytes) -> bool:
    """Return whether :func:`make_mac` makes *mac* with these arguments, in constant time."""
    try:
        _hmac(key, pieces).verify(mac)
    except InvalidSignature:
        return False
    return True


def state_mac(history_key: bytes, purpose: bytes, content: bytes) -> bytes:
    """Return the 32-byte MAC over *content*, which is written down of a volume outside its keystore."""
    return make_mac(derive_state_key(history_key), purpose, content)


def fits_state_mac(history_key: bytes, purpose: bytes, content: bytes, mac: bytes) -> bool:
    """Return whether :func:`state_mac` makes *mac*."""
    return fits_mac(mac, derive_state_key(history_key), purpose, content)


def _hmac(key: bytes, pieces: tuple[bytes, ...]) -> HMAC:
    mac = HMAC(key, SHA256())
    for piece in pieces:
        mac.update(piece)
    return mac

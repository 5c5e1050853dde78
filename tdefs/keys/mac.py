"""HMAC-SHA256 over what tdefs writes. Each kind of record has a purpose of its own; none begins another one."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.keys.hierarchy import derive_state_key


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

"""The MACs over what is written down of a volume outside its keystore: each kind of record has its own purpose."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.keys.hierarchy import derive_state_key


def state_mac(history_key: bytes, purpose: bytes, content: bytes) -> bytes:
    """Return the 32-byte MAC over *content*, a record of the kind *purpose*; no purpose begins another one."""
    return _mac(history_key, purpose, content).finalize()


def fits_state_mac(history_key: bytes, purpose: bytes, content: bytes, mac: bytes) -> bool:
    """Tell whether :func:`state_mac` has made *mac*."""
    try:
        _mac(history_key, purpose, content).verify(mac)
    except InvalidSignature:
        return False
    return True


def _mac(history_key: bytes, purpose: bytes, content: bytes) -> HMAC:
    mac = HMAC(derive_state_key(history_key), SHA256())
    mac.update(purpose + content)
    return mac

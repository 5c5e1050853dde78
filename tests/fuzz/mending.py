"""Putting right what a mutation breaks first, checksums and MACs, so that what lies behind them is tested too."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from tdefs.format.header import RECORD_SIZE
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.text import signed_bytes
from tdefs.keys.wrapping import hkdf_sha256
from tdefs.pg.control import crc32c

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 1.0, 1e308, 2**31, 2**32, 2**63, 10**400),
    *("", "a", "mk_1", "dk_1", "pr_1", "passphrase", "command", "A", "a" * 31, "a" * 32, "0" * 64, "ff" * 60),
    *("\0", "\n", "\x1b[2J", "\ud800", "\udc80", "\u2028", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"),
    *("2026-02-30T00:00:00Z", "aes-256-xts", "active", "scrypt", "00" * 16, "é" * 5000, "zz"),
    *([], {}, [[]], [{}], {"a": 1}, [1, 2], {"kdf": "scrypt", "n": 2**40, "r": 8, "p": 1, "salt": "00" * 16}),
    *({"kdf": "scrypt", "n": 2**26, "r": 1, "p": 1, "salt": "00" * 16}, {"n": 2**62, "r": 2**62, "p": 2**62}),
)


def with_checksum(record: bytes) -> bytes:
    """Return a header record whose SHA-256 is right."""
    summed = record[: RECORD_SIZE - 32].ljust(RECORD_SIZE - 32, b"\0")
    return summed + hashlib.sha256(summed).digest() + record[RECORD_SIZE:]


def with_mac(record: bytes, mac_key: bytes) -> bytes:
    """Return a header record whose MAC and SHA-256 are right, as somebody with the key could make it."""
    fixed = record[: RECORD_SIZE - 64].ljust(RECORD_SIZE - 64, b"\0")
    mac = HMAC(mac_key, SHA256())
    mac.update(fixed)
    return with_checksum(fixed + mac.finalize() + record[RECORD_SIZE - 32 :])


def with_checksum_line(text: bytes) -> bytes:
    """Return a keystore file whose last line fits."""
    return text + f"sha256:{hashlib.sha256(text).hexdigest()}\n".encode()


def keystore_mac(document: Document, master_secret: bytes) -> bytes:
    """Return the MAC that makes a keystore document genuine (docs/FORMAT.md, Keystore)."""
    mac = HMAC(hkdf_sha256(master_secret, b"tdefs v1 keystore mac" + document.volume_id, 32), SHA256())
    mac.update(signed_bytes(document))
    return mac.finalize()


def with_crc(content: bytes, crc_at: int) -> bytes:
    """Return a pg_control whose CRC is right."""
    start = content[:crc_at].ljust(crc_at, b"\0")
    return start + crc32c(start).to_bytes(4, "little") + content[crc_at + 4 :]


def edited(value: Any, edits: bytes) -> Any:
    """Return a JSON value after edits, each told by three bytes: where, what to do there, and with which value."""
    value = json.loads(json.dumps(value))
    for at in range(0, len(edits) - 2, 3):
        where, action, which = edits[at : at + 3]
        places = _places(value)
        if not places:
            break
        container, key = places[where * len(places) // 256]
        odd = copy.deepcopy(_ODD_VALUES[which % len(_ODD_VALUES)])
        match action % 4:
            case 0 | 1:
                container[key] = odd
            case 2:
                del container[key]
            case 3 if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            case 3:
                container[str(odd)[:40]] = copy.deepcopy(container[key])
    return value


def replacing(value: Any, name: str) -> list[bytes]:
    """Return for each odd value the edit that puts it in the place of a member."""
    places = _places(value)
    index = next(number for number, (_, key) in enumerate(places) if key == name)
    where = -(-index * 256 // len(places))
    return [bytes([where, 0, which]) for which in range(len(_ODD_VALUES))]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every member and item of a JSON value, as its container and its name or index in that."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        container = pending.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list) and len(found) < 1000:
                pending.append(container[key])
    return found

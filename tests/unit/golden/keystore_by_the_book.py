"""A reader of keystores written from docs/FORMAT.md alone: no code of tdefs, and of `cryptography` only AES-GCM.

It checks the MAC and returns the data keys, for every kind of protector. What a service has is asked for by a
function that the caller gives, which gets the protector's parameters and the context.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Returns the secret for a protector: its parameters, and the context.
Fetch = Callable[[dict[str, Any], bytes], bytes]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
LABELS = {
    "command": b"tdefs v1 command wrapping key",
    "recovery-code": b"tdefs v1 recovery code wrapping key",
    "kmip": b"tdefs v1 kmip wrapping key",
    "pkcs11": b"tdefs v1 pkcs11 wrapping key",
    "aws-kms": b"tdefs v1 aws-kms wrapping key",
    "vault-transit": b"tdefs v1 vault transit wrapping key",
    "vault-kv": b"tdefs v1 vault kv wrapping key",
}


def hkdf(secret: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256 (RFC 5869) without salt."""
    return hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info + b"\x01", "sha256")


def context(volume_id: bytes, purpose: str, name: str, number: int, wrapped_by: str) -> bytes:
    texts = [text.encode("ascii") for text in (purpose, name, wrapped_by)]
    head = b"tdefs v1 wrap" + volume_id + struct.pack("<I", number)
    return head + b"".join(bytes([len(text)]) + text for text in texts)


def unwrap(key: bytes, wrapped: str, where: bytes) -> bytes:
    data = bytes.fromhex(wrapped)
    return AESGCM(key).decrypt(data[:12], data[12:], where)


def for_mac(value: Any) -> str:
    """The form for the MAC, written out."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{for_mac(name)}:{for_mac(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(for_mac, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _escaped(character: str) -> str:
    code = ord(character)
    if code in _SHORT:
        return _SHORT[code]
    if 0x20 <= code <= 0x7E:
        return character
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    return f"\\u{code:04x}"


def passphrase_of_a_file(content: bytes) -> bytes:
    return content[:-1] if content.endswith(b"\n") else content


def bytes_of_a_recovery_code(printed: str) -> bytes:
    """The 22 bytes of a code that was typed as it was printed."""
    groups = printed.split("-")
    number = 0
    for group in groups:
        for character in group[:5]:
            number = number * 32 + _ALPHABET.index(character)
    return number.to_bytes(22, "big")


def data_keys(keystore: bytes, kind: str, fetch: Fetch) -> dict[tuple[str, int], bytes]:
    """Every data key by name and round, opened by the first protector of the kind."""
    body, checksum = keystore[:-72], keystore[-72:]
    assert checksum == f"sha256:{hashlib.sha256(body).hexdigest()}\n".encode()
    document = json.loads(body)
    volume = bytes.fromhex(document["volume_id"])
    entry = next(one for one in document["protectors"] if one["kind"] == kind)
    where = context(volume, f"protector key by {kind}", entry["id"], 0, entry["id"])
    secret = fetch(entry["params"], where)
    wrapping_key = secret if kind == "passphrase" else hkdf(secret, LABELS[kind] + where)
    protector_key = unwrap(wrapping_key, entry["wrapped"], where)
    where = context(volume, "master key", entry["master_key"], 0, entry["id"])
    master = unwrap(hkdf(protector_key, b"tdefs v1 master key wrapping"), entry["wrapped_master_key"], where)
    signed = for_mac({name: value for name, value in document.items() if name != "mac"}).encode("ascii")
    mac_key = hkdf(master, b"tdefs v1 keystore mac" + volume)
    assert document["mac"] == hmac.digest(mac_key, signed, "sha256").hex()
    keys = {}
    for data_key in document["data_keys"]:
        for one in data_key["rounds"]:
            if one["state"] != "destroyed":
                where = context(volume, "data key", data_key["name"], one["round"], one["wrapped_by"])
                key = unwrap(hkdf(master, b"tdefs v1 data key wrapping"), one["wrapped"], where)
                keys[data_key["name"], one["round"]] = key
    return keys


def scrypt(passphrase: bytes) -> Fetch:
    """The wrapping key of a protector of kind passphrase."""

    def stretch(params: dict[str, Any], _context: bytes) -> bytes:
        n, r, p = params["n"], params["r"], params["p"]
        salt = bytes.fromhex(params["salt"])
        return hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, dklen=32, maxmem=1 << 30)

    return stretch

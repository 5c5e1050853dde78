"""A decryptor written from docs/FORMAT.md alone: no code of tdefs, and of `cryptography` only the AES modes.

python by_the_book.py BACKING KEYSTORE HEXADECIMAL-KEY RELPATH > PLAINTEXT
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

PAGE, SECTOR, BLOCK = 8192, 512, 16
DataKeys = dict[tuple[str, int], bytes]


def hkdf(secret: bytes, info: bytes, size: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt."""
    prk = hmac.digest(bytes(32), secret, "sha256")
    okm, last = b"", b""
    while len(okm) < size:
        last = hmac.digest(prk, last + info + bytes([len(okm) // 32 + 1]), "sha256")
        okm += last
    return okm[:size]


def context(volume_id: bytes, purpose: str, name: str, number: int, wrapped_by: str) -> bytes:
    texts = [text.encode("ascii") for text in (purpose, name, wrapped_by)]
    head = b"tdefs v1 wrap" + volume_id + struct.pack("<I", number)
    return head + b"".join(bytes([len(text)]) + text for text in texts)


def unwrap(key: bytes, wrapped: bytes, where: bytes) -> bytes:
    return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], where)


def data_keys(keystore: bytes, command_key: bytes) -> DataKeys:
    """Every data key by name and round, from a keystore with a protector of the kind "command"."""
    body, checksum = keystore[:-72], keystore[-72:]
    assert checksum == f"sha256:{hashlib.sha256(body).hexdigest()}\n".encode()
    document = json.loads(body)
    volume = bytes.fromhex(document["volume_id"])
    kind = "master key" if document["version"] == 1 else "protector key"
    master = {}
    for entry in document["protectors"]:
        if entry["kind"] == "command":
            name = entry["master_key"] if document["version"] == 1 else entry["id"]
            where = context(volume, f"{kind} by command", name, 0, entry["id"])
            wrapping_key = hkdf(command_key, b"tdefs v1 command wrapping key" + where, 32)
            key = unwrap(wrapping_key, bytes.fromhex(entry["wrapped"]), where)
            if document["version"] > 1:
                where = context(volume, "master key", entry["master_key"], 0, entry["id"])
                wrapping_key = hkdf(key, b"tdefs v1 master key wrapping", 32)
                key = unwrap(wrapping_key, bytes.fromhex(entry["wrapped_master_key"]), where)
            master[entry["master_key"]] = key
    keys = {}
    for data_key in document["data_keys"]:
        for entry in data_key["rounds"]:
            if entry["state"] == "destroyed":
                continue
            where = context(volume, "data key", data_key["name"], entry["round"], entry["wrapped_by"])
            wrapping_key = hkdf(master[entry["wrapped_by"]], b"tdefs v1 data key wrapping", 32)
            unwrapped = unwrap(wrapping_key, bytes.fromhex(entry["wrapped"]), where)
            keys[data_key["name"], entry["round"]] = unwrapped
    return keys


def decrypt_file(stored: bytes, volume_id: bytes, keys: DataKeys) -> bytes:
    """The content of a stored file, plain or encrypted; fails where the format says that a file is damaged."""
    if stored[:8] != b"\x89TDEFS\r\n" and stored[16:32] != volume_id:
        return stored
    fields = struct.unpack("<8sHHI16s16s32sI8s4x32s32s288x32s32s", stored[:512])
    magic, version, suite, page_size, volume, file_id, name, number, fingerprint, *_, mac, checksum = fields
    assert checksum == hashlib.sha256(stored[:480]).digest()
    assert (magic, version, suite, page_size, volume) == (b"\x89TDEFS\r\n", 2, 1, PAGE, volume_id)
    data_key = keys[name.rstrip(b"\0").decode("ascii"), number]
    assert fingerprint == hkdf(data_key, b"tdefs v1 key fingerprint", 8)
    assert mac == hmac.digest(hkdf(data_key, b"tdefs v1 header mac", 32), stored[:448], "sha256")
    file_key = hkdf(data_key, b"tdefs v1 file key aes-256-xts" + file_id, 64)
    data = stored[PAGE:]
    length = len(data) if len(data) % BLOCK == 0 else len(data) - BLOCK
    blocks = data[: -(-length // BLOCK) * BLOCK]
    pages = (decrypt_page(file_key, at // PAGE, blocks[at : at + PAGE]) for at in range(0, len(blocks), PAGE))
    return b"".join(pages)[:length]


def link_target(text: bytes, path: str, volume_id: bytes, keys: DataKeys) -> bytes:
    """Where a symbolic link leads to, by its stored text; fails where it is not this place's."""
    assert text[:8] == b"tdefs:2:"
    packed = base64.urlsafe_b64decode(text[8:] + b"=" * (-len(text[8:]) % 4))
    name, number, fingerprint, link_id = struct.unpack("<32sI8s16s", packed[:60])
    data_key = keys[name.rstrip(b"\0").decode("ascii"), number]
    assert fingerprint == hkdf(data_key, b"tdefs v1 key fingerprint", 8)
    link_key = hkdf(data_key, b"tdefs v1 symbolic link aes-256-gcm" + link_id, 32)
    plaintext = AESGCM(link_key).decrypt(bytes(12), packed[60:], b"tdefs:2:" + volume_id + packed[:60])
    assert hashlib.sha256(path.encode()).digest()[:16] in (plaintext[:16], plaintext[16:32])
    return plaintext[32:]


def decrypt_page(file_key: bytes, page: int, ciphertext: bytes) -> bytes:
    plaintext = Cipher(AES(file_key), XTS(page.to_bytes(16, "little"))).decryptor().update(ciphertext)
    out = b""
    for at in range(0, len(ciphertext), SECTOR):
        used = len(ciphertext[at : at + SECTOR].rstrip(b"\0"))
        kept = -(-used // BLOCK) * BLOCK
        out += plaintext[at : at + kept].ljust(min(SECTOR, len(ciphertext) - at), b"\0")
    return out


def main(backing: str, keystore: str, command_key: str, relpath: str) -> None:
    volume_id = bytes.fromhex(json.loads((Path(backing) / ".tdefs/volume.json").read_text())["volume_id"])
    keys = data_keys(Path(keystore).read_bytes(), bytes.fromhex(command_key))
    sys.stdout.buffer.write(decrypt_file((Path(backing) / "data" / relpath).read_bytes(), volume_id, keys))


if __name__ == "__main__":
    main(*sys.argv[1:])

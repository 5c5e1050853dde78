"""What docs/FORMAT.md says is what tdefs does: vectors.json was computed without any code of tdefs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdefs.format.header import Binding, Header, Identity, decode_header, encode_header, named, verify_header
from tdefs.format.layout import PAGE_SIZE, SECTOR_SIZE
from tdefs.format.suite1 import Suite1
from tdefs.format.suite1.layout import plaintext_length, stored_size
from tdefs.format.suite1.pages import PageCipher
from tdefs.keys.hierarchy import AES_256_XTS, DataKey, derive_file_key, derive_header_mac_key, key_fingerprint
from tests.support.ciphers import MAKERS

Maker = Callable[[bytes], PageCipher]
VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
FILE_KEY = bytes.fromhex(VECTORS["file_key_of_pages"])
BINDINGS = {
    "relation": Binding.RELATION,
    "any place": Binding.ANY_PLACE,
    "class": Binding.CLASS,
}


def data_key(vector: dict[str, Any]) -> DataKey:
    return DataKey("dk_1", 1, AES_256_XTS, bytes.fromhex(vector["data_key"]))


def header_of(vector: dict[str, Any]) -> Header:
    identities = tuple(
        named(fields["path"].encode())
        if "path" in fields
        else Identity(BINDINGS[fields["binding"]], **{name: fields[name] for name in fields if name != "binding"})
        for fields in vector["identities"]
    )
    return Header(
        volume_id=bytes.fromhex(vector["volume_id"]),
        file_id=bytes.fromhex(vector["file_id"]),
        key_name=vector["key_name"],
        key_round=vector["key_round"],
        key_fingerprint=key_fingerprint(data_key(vector)),
        identities=identities,
    )


@pytest.mark.parametrize("vector", VECTORS["keys"])
def test_derived_keys_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    key = data_key(vector)
    file_key = derive_file_key(
        key, bytes.fromhex(vector["file_id"]), Suite1.file_key_purpose, Suite1.file_key_bytes
    )
    assert file_key.hex() == vector["file_key"]
    assert derive_header_mac_key(key).hex() == vector["header_mac_key"]
    assert key_fingerprint(key).hex() == vector["fingerprint"]


@pytest.mark.parametrize("vector", VECTORS["headers"])
def test_header_records_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    header, record = header_of(vector), bytes.fromhex(vector["record"])
    mac_key = derive_header_mac_key(data_key(vector))
    assert encode_header(header, mac_key).hex() == vector["record"]
    assert decode_header(record, header.volume_id) == header
    verify_header(record, header, mac_key, key_fingerprint(data_key(vector)))


@pytest.mark.parametrize("vector", VECTORS["pages"])
@pytest.mark.parametrize("make", MAKERS)
def test_page_ciphertexts_are_those_of_the_vectors(vector: dict[str, Any], make: Maker) -> None:
    plaintext = repeated(vector["plaintext"]["repeated"], vector["plaintext"]["size"])
    ciphertext = bytes(make(FILE_KEY).encrypt(vector["page"], plaintext))
    assert ciphertext[:32].hex() == vector["first_32"]
    assert hashlib.sha256(ciphertext).hexdigest() == vector["sha256"]
    assert bytes(make(FILE_KEY).decrypt(vector["page"], ciphertext)) == plaintext


@pytest.mark.parametrize("vector", VECTORS["holes"])
@pytest.mark.parametrize("make", MAKERS)
def test_zero_sector_ends_read_as_the_vectors_say(vector: dict[str, Any], make: Maker) -> None:
    cipher = make(FILE_KEY)
    stored = bytearray(cipher.encrypt(vector["page"], repeated(vector["repeated"], PAGE_SIZE)))
    start = vector["sector"] * SECTOR_SIZE
    stored[start + vector["kept"] : start + SECTOR_SIZE] = bytes(SECTOR_SIZE - vector["kept"])
    plaintext = cipher.decrypt(vector["page"], stored)
    assert hashlib.sha256(plaintext).hexdigest() == vector["plaintext_sha256"]


@pytest.mark.parametrize(("length", "size"), VECTORS["lengths"])
def test_stored_sizes_are_those_of_the_vectors(length: int, size: int) -> None:
    assert stored_size(length) == size
    assert plaintext_length(size) == length


def repeated(hexadecimal: str, size: int) -> bytes:
    unit = bytes.fromhex(hexadecimal)
    return unit * (size // len(unit))

"""The decryptor written from docs/FORMAT.md and the test vectors agree, so the document is enough for both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.golden import by_the_book

VECTORS = json.loads((Path(__file__).parents[1] / "format/vectors.json").read_text())
DOCUMENT = (Path(__file__).parents[3] / "docs/FORMAT.md").read_text()
FILE_KEY = bytes.fromhex(VECTORS["file_key_of_pages"])


def test_the_book_derives_the_keys_of_the_vectors() -> None:
    for vector in VECTORS["keys"]:
        info = b"tdefs v1 file key aes-256-xts" + bytes.fromhex(vector["file_id"])
        assert by_the_book.hkdf(bytes.fromhex(vector["data_key"]), info, 64).hex() == vector["file_key"]


def test_the_book_decrypts_the_pages_of_the_vectors() -> None:
    for vector in VECTORS["pages"]:
        unit = bytes.fromhex(vector["plaintext"]["repeated"])
        plaintext = unit * (vector["plaintext"]["size"] // len(unit))
        start = by_the_book.decrypt_page(FILE_KEY, vector["page"], bytes.fromhex(vector["first_32"]))
        assert plaintext.startswith(start[:16])


def test_the_book_reads_a_whole_file_with_the_header_of_the_vectors() -> None:
    for vector in VECTORS["headers"]:
        keys = {(vector["key_name"], vector["key_round"]): bytes.fromhex(vector["data_key"])}
        stored = bytes.fromhex(vector["record"]).ljust(2 * by_the_book.PAGE, b"\0")
        content = by_the_book.decrypt_file(stored, bytes.fromhex(vector["volume_id"]), keys)
        assert content == bytes(by_the_book.PAGE)


@pytest.mark.parametrize("name", ["file_key", "header_mac_key", "fingerprint"])
def test_the_document_prints_the_first_key_vector(name: str) -> None:
    assert VECTORS["keys"][0][name] in DOCUMENT.replace("\n    ", "").replace(" ", "")


def test_the_document_prints_the_first_header_and_page() -> None:
    text = "".join(DOCUMENT.split())
    assert VECTORS["headers"][0]["record"] in text
    assert VECTORS["pages"][0]["first_32"] in text
    assert VECTORS["pages"][0]["sha256"] in text


def test_the_document_prints_every_length_of_the_vectors_up_to_a_page() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.splitlines()]
    for length, size in VECTORS["lengths"]:
        if length <= 8193:
            assert [str(length), str(size)] in [row[:2] for row in rows], length

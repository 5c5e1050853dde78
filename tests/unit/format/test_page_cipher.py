"""Each 16-byte block stands for itself, depends on its place, and zero sectors are holes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.format.layout import BLOCK_SIZE, PAGE_SIZE, SECTOR_SIZE
from tdefs.format.pages import PageCipher

CIPHER = PageCipher(bytes(range(64)))
PAGE = bytes(range(256)) * 32
sizes = st.integers(0, 3 * PAGE_SIZE // BLOCK_SIZE).map(lambda blocks: blocks * BLOCK_SIZE)


@given(st.integers(0, 2**64), sizes, st.binary(min_size=1, max_size=40))
def test_what_was_encrypted_is_decrypted(first_page: int, size: int, unit: bytes) -> None:
    plaintext = (unit * (size // len(unit) + 1))[:size]
    ciphertext = CIPHER.encrypt(first_page, plaintext)
    assert len(ciphertext) == size
    assert bytes(CIPHER.decrypt(first_page, bytes(ciphertext))) == plaintext


def test_a_run_of_pages_is_each_page_by_itself() -> None:
    pages = PAGE + bytes(PAGE_SIZE) + PAGE[::-1] + PAGE[:48]
    together = bytes(CIPHER.encrypt(5, pages))
    alone = [
        bytes(CIPHER.encrypt(5 + number, pages[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]))
        for number in range(4)
    ]
    assert together == b"".join(alone)


def test_the_same_page_differs_by_position_and_by_file() -> None:
    other_file = PageCipher(bytes(range(1, 65)))
    ciphertexts = {bytes(CIPHER.encrypt(number, PAGE)) for number in (0, 1, 2**32)}
    ciphertexts.add(bytes(other_file.encrypt(0, PAGE)))
    assert len(ciphertexts) == 4


def test_equal_blocks_of_one_page_have_different_ciphertexts() -> None:
    ciphertext = bytes(CIPHER.encrypt(0, b"a" * PAGE_SIZE))
    blocks = {ciphertext[at : at + BLOCK_SIZE] for at in range(0, PAGE_SIZE, BLOCK_SIZE)}
    assert len(blocks) == PAGE_SIZE // BLOCK_SIZE


@pytest.mark.parametrize("block", [0, 1, 31, 32, 255, 511])
def test_a_changed_block_changes_no_other(block: int) -> None:
    changed = bytearray(PAGE)
    changed[block * BLOCK_SIZE] ^= 1
    before, after = bytes(CIPHER.encrypt(3, PAGE)), bytes(CIPHER.encrypt(3, changed))
    differing = [at for at in range(PAGE_SIZE // BLOCK_SIZE) if before[at * 16 :][:16] != after[at * 16 :][:16]]
    assert differing == [block]


@given(st.integers(1, 511))
def test_a_torn_page_keeps_each_block_of_the_old_and_the_new(cut: int) -> None:
    at = cut * BLOCK_SIZE
    new = bytes(reversed(PAGE))
    torn = bytes(CIPHER.encrypt(0, new)[:at]) + bytes(CIPHER.encrypt(0, PAGE)[at:])
    assert bytes(CIPHER.decrypt(0, torn)) == new[:at] + PAGE[at:]


@pytest.mark.parametrize("size", [16, 512, 4096, 8176, 8192])
def test_zeros_are_stored_as_zeros_and_read_as_zeros(size: int) -> None:
    assert not any(CIPHER.encrypt(0, bytes(size)))
    assert not any(CIPHER.decrypt(0, bytes(size)))


@given(st.integers(0, 15), st.integers(0, 32))
def test_the_zero_end_of_a_sector_is_a_hole(sector: int, blocks: int) -> None:
    hole = sector * SECTOR_SIZE + blocks * BLOCK_SIZE
    end = (sector + 1) * SECTOR_SIZE
    stored = bytearray(CIPHER.encrypt(0, PAGE))
    stored[hole:end] = bytes(end - hole)
    assert bytes(CIPHER.decrypt(0, stored)) == PAGE[:hole] + bytes(end - hole) + PAGE[end:]


def test_a_block_that_ends_in_zero_bytes_is_no_hole() -> None:
    # the last byte of one ciphertext block in 256 is zero: the rule counts blocks, not bytes
    page = next(number for number in range(100_000) if CIPHER.encrypt(number, PAGE[:512])[-1] == 0)
    stored = bytes(CIPHER.encrypt(page, PAGE[:512])) + bytes(PAGE_SIZE - 512)
    assert bytes(CIPHER.decrypt(page, stored)) == PAGE[:512] + bytes(PAGE_SIZE - 512)


def test_zero_blocks_between_encrypted_ones_are_no_hole() -> None:
    # no writer makes this, and it must not be mistaken for zeros: somebody has cut a piece out of a sector
    stored = bytearray(CIPHER.encrypt(0, PAGE))
    stored[16:32] = bytes(16)
    plaintext = bytes(CIPHER.decrypt(0, stored))
    assert plaintext[16:32] not in (bytes(16), PAGE[16:32])
    assert plaintext[:16] + plaintext[32:] == PAGE[:16] + PAGE[32:]

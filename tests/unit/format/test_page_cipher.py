"""Each 16-byte block stands for itself, depends on its place, and zero sectors are holes; compiled or not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.format import _compiled
from tdefs.format._compiled import CompiledPageCipher
from tdefs.format.layout import PAGE_SIZE, SECTOR_SIZE
from tdefs.format.suite1.layout import BLOCK_SIZE
from tdefs.format.suite1.pages import PageCipher, PythonPageCipher, best_page_cipher, page_cipher
from tests.support.ciphers import MAKERS

Maker = Callable[[bytes], PageCipher]
KEY = bytes(range(64))
both = pytest.mark.parametrize("make", MAKERS)
PAGE = bytes(range(256)) * 32
sizes = st.integers(0, 3 * PAGE_SIZE // BLOCK_SIZE).map(lambda blocks: blocks * BLOCK_SIZE)


@given(st.integers(0, 2**50), sizes, st.binary(min_size=1, max_size=40))
@both
def test_what_was_encrypted_is_decrypted(make: Maker, first_page: int, size: int, unit: bytes) -> None:
    cipher = make(KEY)
    plaintext = (unit * (size // len(unit) + 1))[:size]
    ciphertext = cipher.encrypt(first_page, plaintext)
    assert len(ciphertext) == size
    assert bytes(cipher.decrypt(first_page, bytes(ciphertext))) == plaintext


@both
def test_a_run_of_pages_is_each_page_by_itself(make: Maker) -> None:
    cipher = make(KEY)
    pages = PAGE + bytes(PAGE_SIZE) + PAGE[::-1] + PAGE[:48]
    together = bytes(cipher.encrypt(5, pages))
    alone = [
        bytes(cipher.encrypt(5 + number, pages[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]))
        for number in range(4)
    ]
    assert together == b"".join(alone)


@both
def test_the_same_page_differs_by_position_and_by_file(make: Maker) -> None:
    cipher = make(KEY)
    other_file = make(bytes(range(1, 65)))
    ciphertexts = {bytes(cipher.encrypt(number, PAGE)) for number in (0, 1, 2**32)}
    ciphertexts.add(bytes(other_file.encrypt(0, PAGE)))
    assert len(ciphertexts) == 4


@both
def test_equal_blocks_of_one_page_have_different_ciphertexts(make: Maker) -> None:
    cipher = make(KEY)
    ciphertext = bytes(cipher.encrypt(0, b"a" * PAGE_SIZE))
    blocks = {ciphertext[at : at + BLOCK_SIZE] for at in range(0, PAGE_SIZE, BLOCK_SIZE)}
    assert len(blocks) == PAGE_SIZE // BLOCK_SIZE


@pytest.mark.parametrize("block", [0, 1, 31, 32, 255, 511])
@both
def test_a_changed_block_changes_no_other(make: Maker, block: int) -> None:
    cipher = make(KEY)
    changed = bytearray(PAGE)
    changed[block * BLOCK_SIZE] ^= 1
    before, after = bytes(cipher.encrypt(3, PAGE)), bytes(cipher.encrypt(3, changed))
    differing = [at for at in range(PAGE_SIZE // BLOCK_SIZE) if before[at * 16 :][:16] != after[at * 16 :][:16]]
    assert differing == [block]


@given(st.integers(1, 511))
@both
def test_a_torn_page_keeps_each_block_of_the_old_and_the_new(make: Maker, cut: int) -> None:
    cipher = make(KEY)
    at = cut * BLOCK_SIZE
    new = bytes(reversed(PAGE))
    torn = bytes(cipher.encrypt(0, new)[:at]) + bytes(cipher.encrypt(0, PAGE)[at:])
    assert bytes(cipher.decrypt(0, torn)) == new[:at] + PAGE[at:]


@pytest.mark.parametrize("size", [16, 512, 4096, 8176, 8192])
@both
def test_zeros_are_stored_as_zeros_and_read_as_zeros(make: Maker, size: int) -> None:
    cipher = make(KEY)
    assert not any(cipher.encrypt(0, bytes(size)))
    assert not any(cipher.decrypt(0, bytes(size)))


@given(st.integers(0, 15), st.integers(0, 32))
@both
def test_the_zero_end_of_a_sector_is_a_hole(make: Maker, sector: int, blocks: int) -> None:
    cipher = make(KEY)
    hole = sector * SECTOR_SIZE + blocks * BLOCK_SIZE
    end = (sector + 1) * SECTOR_SIZE
    stored = bytearray(cipher.encrypt(0, PAGE))
    stored[hole:end] = bytes(end - hole)
    assert bytes(cipher.decrypt(0, stored)) == PAGE[:hole] + bytes(end - hole) + PAGE[end:]


@both
def test_a_block_that_ends_in_zero_bytes_is_no_hole(make: Maker) -> None:
    cipher = make(KEY)
    # the last byte of one ciphertext block in 256 is zero: the rule counts blocks, not bytes
    page = next(number for number in range(100_000) if cipher.encrypt(number, PAGE[:512])[-1] == 0)
    stored = bytes(cipher.encrypt(page, PAGE[:512])) + bytes(PAGE_SIZE - 512)
    assert bytes(cipher.decrypt(page, stored)) == PAGE[:512] + bytes(PAGE_SIZE - 512)


@both
def test_zero_blocks_between_encrypted_ones_are_no_hole(make: Maker) -> None:
    cipher = make(KEY)
    # no writer makes this, and it must not be mistaken for zeros: somebody has cut a piece out of a sector
    stored = bytearray(cipher.encrypt(0, PAGE))
    stored[16:32] = bytes(16)
    plaintext = bytes(cipher.decrypt(0, stored))
    assert plaintext[16:32] not in (bytes(16), PAGE[16:32])
    assert plaintext[:16] + plaintext[32:] == PAGE[:16] + PAGE[32:]


runs = st.integers(1, 5 * PAGE_SIZE // BLOCK_SIZE).map(lambda blocks: blocks * BLOCK_SIZE)
zero_pieces = st.lists(st.tuples(st.integers(0, 5 * PAGE_SIZE), st.integers(0, 2 * PAGE_SIZE)), max_size=6)


@given(st.integers(0, 2**50), runs, zero_pieces, st.randoms(use_true_random=False))
def test_both_ciphers_do_the_same(page: int, size: int, zeros: list[tuple[int, int]], random: Random) -> None:
    python, compiled = PythonPageCipher(KEY), CompiledPageCipher(KEY)
    data = bytearray(random.randbytes(size))
    for start, length in zeros:
        end = min(start + length, size)
        data[start:end] = bytes(max(0, end - start))
    assert bytes(python.encrypt(page, data)) == compiled.encrypt(page, data)
    # as ciphertext: with holes, and with zeros where no writer leaves them
    assert bytes(python.decrypt(page, data)) == compiled.decrypt(page, data)


@both
def test_threads_may_share_a_cipher(make: Maker) -> None:
    cipher = make(KEY)
    long, short = PAGE * 32, PAGE
    expected = [bytes(cipher.encrypt(number, pages)) for number, pages in enumerate([long, short] * 4)]
    wrong: list[int] = []

    def work(number: int, pages: bytes) -> None:
        for _ in range(50):
            ciphertext = bytes(cipher.encrypt(number, pages))
            if ciphertext != expected[number] or bytes(cipher.decrypt(number, ciphertext)) != pages:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=item) for item in enumerate([long, short] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_compiled_cipher_is_taken_where_it_was_built() -> None:
    assert page_cipher is CompiledPageCipher


@pytest.mark.parametrize(
    "arguments", [(), (0,), (0, b"x" * 17), (-1, PAGE), (2**64, PAGE), ("0", PAGE), (0, "text")]
)
def test_the_compiled_cipher_refuses_what_is_no_run_of_pages(arguments: tuple[object, ...]) -> None:
    cipher = CompiledPageCipher(KEY)
    for operation in (cipher.encrypt, cipher.decrypt):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            operation(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"", bytes(32), bytes(range(65))])
def test_a_key_of_another_size_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        CompiledPageCipher(key)


class Wrong:
    """A cipher that does not do what it should."""

    def __init__(self, file_key: bytes) -> None:
        self._right = PythonPageCipher(file_key)

    def encrypt(self, first_page: int, plaintext: bytes | bytearray) -> bytes | memoryview:
        return self._right.encrypt(first_page + 1, plaintext)

    def decrypt(self, first_page: int, ciphertext: bytes | bytearray) -> bytes | memoryview:
        return self._right.decrypt(first_page + 1, ciphertext)


class Failing(Wrong):
    """A cipher whose library refuses."""

    def __init__(self, file_key: bytes) -> None:
        raise RuntimeError("no such cipher")


@pytest.mark.parametrize("broken", [Wrong, Failing])
def test_a_compiled_cipher_that_does_otherwise_is_not_used(
    broken: type, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_compiled, "CompiledPageCipher", broken)
    assert best_page_cipher() is PythonPageCipher
    assert "the compiled page cipher fails its test" in caplog.text


def test_without_the_compiled_cipher_the_one_in_python_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tdefs.format._compiled", None)
    assert best_page_cipher() is PythonPageCipher

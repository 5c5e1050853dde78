"""An encrypted file behaves like a plain one, whatever is written, cut or read, and whenever it stops."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdefs.format.errors import DamagedLength
from tdefs.format.layout import HEADER_SIZE, PAGE_SIZE
from tdefs.format.suite1.layout import plaintext_length, stored_size
from tdefs.format.suite1.pages import page_cipher
from tests.support.stored_file import StoredFile

KEY = bytes(range(64))
EDGES = [0, 1, 15, 16, 17, 31, 32, 33, 511, 512, 513, 8175, 8176, 8177, 8191, 8192, 8193, 16384, 20000]


@dataclass
class Memory:
    """A store in memory that can keep a copy of every state it went through."""

    data: bytearray = field(default_factory=lambda: bytearray(HEADER_SIZE))
    states: list[bytes] | None = None

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        if self.states is not None:
            self._tear(bytes(data), offset)
        self._put(bytes(data), offset)
        self._note()

    def truncate(self, size: int) -> None:
        self._resize(size)
        self._note()

    def _put(self, data: bytes, offset: int) -> None:
        if offset > len(self.data):
            self._resize(offset)
        self.data[offset : offset + len(data)] = data

    def _resize(self, size: int) -> None:
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))

    def _note(self) -> None:
        if self.states is not None:
            self.states.append(bytes(self.data))

    def _tear(self, data: bytes, offset: int) -> None:
        """Record the states in which only the sectors before, or only those behind, some boundary arrived."""
        before = bytes(self.data)
        first = -offset % 512 or 512
        for cut in range(first, len(data), 512):
            for part, at in ((data[:cut], offset), (data[cut:], offset + cut)):
                self.data = bytearray(before)
                self._put(part, at)
                self._note()
        self.data = bytearray(before)


def open_file(store: Memory) -> StoredFile:
    return StoredFile(store, page_cipher(KEY), len(store.data))


def plain_write(model: bytearray, offset: int, data: bytes) -> None:
    if data:
        if offset > len(model):
            model.extend(bytes(offset - len(model)))
        model[offset : offset + len(data)] = data


def plain_truncate(model: bytearray, length: int) -> None:
    if length < len(model):
        del model[length:]
    else:
        model.extend(bytes(length - len(model)))


offsets = st.one_of(st.sampled_from(EDGES), st.integers(0, 3 * PAGE_SIZE))
payloads = st.one_of(
    st.binary(max_size=600),
    st.sampled_from(EDGES).flatmap(
        lambda n: st.sampled_from([b"\0" * n, b"x" * n, bytes(range(256)) * (n // 256)])
    ),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, payloads),
        st.tuples(st.just("truncate"), offsets, st.just(b"")),
        st.tuples(st.just("read"), offsets, payloads),
        st.tuples(st.just("reopen"), st.just(0), st.just(b"")),
    ),
    max_size=12,
)


@settings(max_examples=1500)
@given(steps)
def test_any_sequence_of_changes_reads_like_a_plain_file(script: list[tuple[str, int, bytes]]) -> None:
    store, model = Memory(), bytearray()
    file = open_file(store)
    for action, number, data in script:
        if action == "write":
            file.write(number, data)
            plain_write(model, number, data)
        elif action == "truncate":
            file.truncate(number)
            plain_truncate(model, number)
        elif action == "read":
            assert bytes(file.read(number, len(data))) == bytes(model[number : number + len(data)])
        else:
            file = open_file(store)
        assert file.length == len(model)
        assert len(store.data) == stored_size(len(model))
    assert bytes(open_file(store).read(0, len(model) + 1)) == bytes(model)


@settings(max_examples=300)
@given(steps, st.sampled_from(["write", "truncate"]), offsets, payloads)
def test_stop_at_any_point_keeps_every_byte_that_did_not_change(
    script: list[tuple[str, int, bytes]], action: str, number: int, data: bytes
) -> None:
    store, old = Memory(), bytearray()
    file = open_file(store)
    for step, at, payload in script:
        if step == "write":
            file.write(at, payload)
            plain_write(old, at, payload)
        elif step == "truncate":
            file.truncate(at)
            plain_truncate(old, at)
    new = bytearray(old)
    store.states = []
    if action == "write":
        file.write(number, data)
        plain_write(new, number, data)
    else:
        file.truncate(number)
        plain_truncate(new, number)
    for state in store.states:
        length = plaintext_length(len(state))
        assert min(len(old), len(new)) <= length <= max(len(old), len(new))
        found = bytes(open_file(Memory(bytearray(state))).read(0, length))
        for at in range(0, length, 16):
            here = found[at : at + 16]
            was = bytes(old[at : at + 16]).ljust(16, b"\0")[: len(here)]
            becomes = bytes(new[at : at + 16]).ljust(16, b"\0")[: len(here)]
            assert here in (was, becomes), f"block at {at} is neither old nor new"


@pytest.mark.parametrize("length", EDGES)
def test_length_survives_reopening(length: int) -> None:
    store = Memory()
    open_file(store).write(0, b"x" * length)
    assert open_file(store).length == length
    assert bytes(open_file(store).read(0, length + 100)) == b"x" * length


@pytest.mark.parametrize("size", [0, 1, 511, 8191, 8193, 8207])
def test_a_size_that_no_file_can_have_is_damage(size: int) -> None:
    with pytest.raises(DamagedLength):
        plaintext_length(size)


@given(st.integers(0, 1 << 45))
def test_stored_size_tells_the_length(length: int) -> None:
    assert plaintext_length(stored_size(length)) == length


def test_zero_pages_and_extensions_are_stored_as_zeros() -> None:
    store = Memory()
    file = open_file(store)
    file.truncate(5 * PAGE_SIZE)
    file.write(5 * PAGE_SIZE, bytes(2 * PAGE_SIZE))
    assert not any(store.data)
    assert bytes(file.read(0, 7 * PAGE_SIZE)) == bytes(7 * PAGE_SIZE)


def test_same_page_at_two_positions_has_different_ciphertext() -> None:
    store = Memory()
    page = b"the same page" * 630 + b"!!"
    open_file(store).write(0, page * 2)
    first = store.data[HEADER_SIZE : HEADER_SIZE + PAGE_SIZE]
    second = store.data[HEADER_SIZE + PAGE_SIZE : HEADER_SIZE + 2 * PAGE_SIZE]
    assert len(page) == PAGE_SIZE
    assert first != second
    assert page not in store.data


def test_bytes_cut_off_never_come_back() -> None:
    store = Memory()
    file = open_file(store)
    file.write(0, b"s" * 8192)
    file.truncate(8178)
    file.truncate(9000)
    assert bytes(file.read(0, 9000)) == b"s" * 8178 + bytes(822)

"""Pages that become zero, and sizes that arrive before their data, never turn zeros into garbage."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdefs.format.suite1.layout import plaintext_length
from tests.unit.format.test_stored import Memory, open_file

EDGES = [0, 16, 17, 100, 496, 512, 513, 1000, 4096, 8176, 8192, 8193, 9000]


@pytest.mark.parametrize("size", [32, 512, 513, 1000, 8192, 16384])
@pytest.mark.parametrize("cut", [16, 100, 496, 512, 600])
def test_a_page_that_becomes_zero_piece_by_piece_reads_as_zeros(size: int, cut: int) -> None:
    store = Memory()
    file = open_file(store)
    file.write(0, b"x" * size)
    if cut < size:
        file.write(cut, bytes(size - cut))
    file.write(0, bytes(min(cut, size)))
    assert bytes(open_file(store).read(0, size)) == bytes(size)


@settings(max_examples=400)
@given(
    st.sampled_from(EDGES[1:]),
    st.lists(st.tuples(st.sampled_from(EDGES), st.sampled_from(EDGES), st.booleans()), max_size=6),
)
def test_writes_of_zeros_and_of_data_in_any_order_read_like_a_plain_file(
    length: int, writes: list[tuple[int, int, bool]]
) -> None:
    store = Memory()
    file = open_file(store)
    file.write(0, b"x" * length)
    model = bytearray(b"x" * length)
    for start, end, zero in writes:
        data = (b"\0" if zero else b"y") * max(0, min(end, length) - start)
        file.write(start, data)
        model[start : start + len(data)] = data
    assert bytes(open_file(store).read(0, length)) == bytes(model)


@pytest.mark.parametrize("longer", [18, 32, 37, 48, 512, 600, 8193])
@pytest.mark.parametrize("cut", [1, 17, 31, 40, 511])
def test_a_crash_while_appending_after_a_truncation_shows_nothing_that_was_cut_off(cut: int, longer: int) -> None:
    store = Memory()
    file = open_file(store)
    file.write(0, b"s" * 600)
    file.truncate(cut)
    store.states = []
    file.write(cut, b"n" * longer)
    for state in store.states:
        length = plaintext_length(len(state))
        found = bytes(open_file(Memory(bytearray(state))).read(0, length))
        assert found[:cut] == b"s" * cut
        assert set(found[cut:]) <= set(b"n\0")


@pytest.mark.parametrize("longer", [18, 32, 37, 48, 512, 600, 8193])
@pytest.mark.parametrize("cut", [1, 17, 31, 40, 511])
def test_a_crash_while_extending_after_a_truncation_shows_nothing_that_was_cut_off(cut: int, longer: int) -> None:
    store = Memory()
    file = open_file(store)
    file.write(0, b"s" * 600)
    file.truncate(cut)
    store.states = []
    file.truncate(cut + longer)
    for state in store.states:
        length = plaintext_length(len(state))
        found = bytes(open_file(Memory(bytearray(state))).read(0, length))
        assert found == b"s" * cut + bytes(length - cut)

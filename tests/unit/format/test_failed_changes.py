"""An encrypted file on a disk that fails now and then: what failed may be there in part, the rest is as it was."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suite1.layout import stored_size
from tdefs.format.suite1.pages import page_cipher
from tests.support.stored_file import StoredFile

KEY = bytes(range(64))
EDGES = st.one_of(st.sampled_from([0, 1, 15, 16, 17, 511, 512, 8191, 8192, 8193, 16384]), st.integers(0, 40000))
CHANGES = st.lists(st.tuples(st.sampled_from(["write", "truncate"]), EDGES, EDGES, st.integers(0, 3)), max_size=12)


@dataclass
class FailingStore:
    """A store in memory; when ``spare`` calls have been made, one or all of the following fail."""

    data: bytearray = field(default_factory=lambda: bytearray(HEADER_SIZE))
    spare: int = -1
    for_good: bool = False

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        fails = self._fails()
        data = bytes(data)[: len(data) // 2 // 512 * 512] if fails else bytes(data)
        if data:
            self.data.extend(bytes(max(0, offset - len(self.data))))
            self.data[offset : offset + len(data)] = data
        if fails:
            raise OSError(errno.ENOSPC, "full")

    def truncate(self, size: int) -> None:
        if self._fails():
            raise OSError(errno.EIO, "broken")
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def _fails(self) -> bool:
        self.spare -= 1
        return self.spare == -1 or (self.for_good and self.spare < -1)


def check(file: StoredFile, states: list[bytes]) -> None:
    """Each byte is that of one of the states, which have one length."""
    found = bytes(file.read(0, 1 << 20))
    assert len(found) == file.length == len(states[0])
    if found not in states:
        for at, byte in enumerate(found):
            assert any(state[at] == byte for state in states), at


@given(script=CHANGES, for_good=st.booleans())
@settings(max_examples=300)
def test_a_change_that_fails_leaves_the_length_and_every_byte_outside_of_it(
    script: list[tuple[str, int, int, int]], for_good: bool
) -> None:
    store = FailingStore(for_good=for_good)
    file = StoredFile(store, page_cipher(KEY), len(store.data))
    now = b""
    for what, offset, size, spare in script:
        data = bytes(1 + (index + offset) % 255 for index in range(size))
        if what == "truncate":
            new = now[:offset].ljust(offset, b"\0")
        else:
            new = now[:offset].ljust(offset, b"\0") + data + now[offset + size :] if data else now
        store.spare = spare
        try:
            if what == "truncate":
                file.truncate(offset)
            else:
                file.write(offset, data)
        except OSError:
            check(file, [now, new[: len(now)].ljust(len(now), b"\0")])
            now = bytes(file.read(0, len(now)))
        else:
            check(file, [new])
            now = new
        store.spare = 1 << 30
    file.truncate(file.length)
    assert len(store.data) == stored_size(file.length), "what failed is still behind the end"
    check(StoredFile(store, page_cipher(KEY), len(store.data)), [now])


@pytest.mark.parametrize("size", [100, 8192, 9000])
def test_the_end_is_right_when_a_failed_write_could_not_be_taken_back_at_once(size: int) -> None:
    store = FailingStore()
    file = StoredFile(store, page_cipher(KEY), len(store.data))
    file.write(0, b"before" * 5000)
    store.spare, store.for_good = 0, True
    with pytest.raises(OSError, match=r"full|broken"):
        file.write(30000, b"new" * size)
    store.spare = 1 << 30
    file.write(10, b"after")
    assert len(store.data) == stored_size(30000)
    again = StoredFile(store, page_cipher(KEY), len(store.data))
    assert bytes(again.read(0, 1 << 20)) == (b"before" * 5000)[:10] + b"after" + (b"before" * 5000)[15:]

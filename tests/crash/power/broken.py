"""tdefs with one of its promises broken on purpose: the power cuts must catch each.

python broken.py VARIANT COMMAND [ARGUMENT]...
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tdefs.cli import main, mount
from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.durability import Durability, NamesToSync
from tdefs.format import suite1
from tdefs.format.header import Header
from tdefs.format.layout import PAGE_SIZE, floor_to
from tdefs.format.suite1.content import XtsContent
from tdefs.format.suite1.layout import BLOCK_SIZE, stored_size
from tdefs.tree.creating import Creator
from tdefs.tree.inode import Inode
from tdefs.tree.opening import Opener
from tdefs.tree.unsynced_names import UnsyncedNames
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume


def fsync_does_nothing() -> None:
    """A sync is answered at once, and nothing is synced."""

    def forget(self: SystemCalls, label: str, fd: int) -> None:
        pass

    _replace(SystemCalls, fsync=forget, fdatasync=forget, syncfs=forget)


def header_is_not_synced() -> None:
    """A new file's header stays in memory until the file is closed for good: no sync takes it along."""
    waiting: dict[int, bytes] = {}
    close = Opener._close

    def keep(self: Creator, path: str, fd: int, header: Header, length: int = 0) -> None:
        self._calls.ftruncate("create:size", fd, stored_size(length))
        waiting[fd] = self._forms.encode(header)

    def write_and_close(self: Opener, inode: Inode, file: DataFile) -> None:
        if file.fd in waiting:
            self._calls.pwrite("create:header", file.fd, waiting.pop(file.fd), 0)
        close(self, inode, file)

    _replace(Creator, _write_new_header=keep)
    _replace(Opener, _close=write_and_close)


def directory_is_not_synced() -> None:
    """The sync of a file, or of a directory, leaves the names that are new in a directory to luck."""

    def forget_names(
        self: UnsyncedNames, directory: Inode, open_label: str, sync_label: str, *, answered: bool
    ) -> None:
        self.synced(directory, self.last_in(directory))

    async def forget_directory(self: Durability, names: NamesToSync, fd: int) -> None:
        pass

    _replace(UnsyncedNames, sync_names_in=forget_names)
    _replace(Durability, sync_directory=forget_directory)


def durable_writes_are_not_synced() -> None:
    """A write with O_DSYNC past the kernel's cache returns before it is durable."""
    sync = Durability.sync

    async def forget(self: Durability, file: DataFile, *, datasync: bool, of_write: bool = False) -> None:
        if not file.direct:
            await sync(self, file, datasync=datasync, of_write=of_write)

    _replace(Durability, sync=forget)


def unfinished_files_stay() -> None:
    """After a crash nobody empties files whose header never reached the disk."""

    def leave(volume: Volume, believed: Believed) -> list[str]:
        return []

    _replace(mount, empty_unfinished_files=leave)


class _TearingCipher:
    """Each bit of a page's ciphertext depends on the whole page, so a torn write leaves nothing of it."""

    def __init__(self, file_key: bytes) -> None:
        self._aes = algorithms.AES(file_key[:32])

    def encrypt(self, first_page: int, plaintext: bytes | bytearray) -> bytes:
        return self._each(first_page, plaintext, self._encrypt_page)

    def decrypt(self, first_page: int, ciphertext: bytes | bytearray) -> bytes:
        return self._each(first_page, ciphertext, self._decrypt_page)

    def _each(self, first: int, data: bytes | bytearray, work: Callable[[int, bytes], bytes]) -> bytes:
        pages = (bytes(data[start : start + PAGE_SIZE]) for start in range(0, len(data), PAGE_SIZE))
        return b"".join(work(first + i, page) if any(page) else page for i, page in enumerate(pages))

    def _encrypt_page(self, page: int, data: bytes) -> bytes:
        for _ in range(2):
            encryptor = Cipher(self._aes, modes.CBC(page.to_bytes(16, "little"))).encryptor()
            data = _backwards(encryptor.update(data))
        return data

    def _decrypt_page(self, page: int, data: bytes) -> bytes:
        for _ in range(2):
            decryptor = Cipher(self._aes, modes.CBC(page.to_bytes(16, "little"))).decryptor()
            data = decryptor.update(_backwards(data))
        return data


def _backwards(data: bytes) -> bytes:
    """The blocks in reverse order."""
    return b"".join(data[at : at + BLOCK_SIZE] for at in range(len(data) - BLOCK_SIZE, -1, -BLOCK_SIZE))


def cipher_tears() -> None:
    """Pages are encrypted as a whole, and written so."""
    store = XtsContent._store_pages

    def store_whole(
        self: XtsContent, start: int, image: bytes | bytearray, first: int, last: int, length: int
    ) -> None:
        store(self, start, image, start, start + len(image), length)

    def write_whole_tail(self: XtsContent) -> None:
        start = floor_to(self.state.length, PAGE_SIZE)
        if self.state.length > start:
            self._overlay(start, bytes(self._read(start, self.state.length - start)))

    def extend_whole(self: XtsContent, length: int) -> None:
        # a page must not get a hole behind ciphertext that is only valid without it
        inside = min(length, floor_to(self.state.length + PAGE_SIZE - 1, PAGE_SIZE))
        if inside > self.state.length:
            self._overlay(self.state.length, bytes(inside - self.state.length))
        self._store.truncate(stored_size(length))
        self.state.length = length

    _replace(suite1, page_cipher=_TearingCipher)
    _replace(XtsContent, _store_pages=store_whole, _write_tail=write_whole_tail, _extend=extend_whole)


VARIANTS = (
    fsync_does_nothing,
    header_is_not_synced,
    directory_is_not_synced,
    durable_writes_are_not_synced,
    unfinished_files_stay,
    cipher_tears,
)


def _replace(place: object, **parts: object) -> None:
    """Put each part into the place of the one of that name.

    Exit if there is none, or if it is called with other arguments: whatever came of it would count as caught.
    """
    for name, part in parts.items():
        if not hasattr(place, name):
            sys.exit(f"{place} has no {name} any more")
        was = getattr(place, name)
        if inspect.isfunction(was) and _arguments(was) != _arguments(part):
            sys.exit(f"{place}.{name} takes {_arguments(was)} now")
        setattr(place, name, part)


def _arguments(function: object) -> list[tuple[str, object, bool]]:
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default is one.empty) for one in parameters]


if __name__ == "__main__":
    {variant.__name__: variant for variant in VARIANTS}[sys.argv.pop(1)]()
    main.run()

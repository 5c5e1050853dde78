"""Searching for keys: every key of a keystore, and the texts in which a program might show one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from tdefs.format.errors import FormatError
from tdefs.format.header import decode_header
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suites import suite_of
from tdefs.keys.hierarchy import derive_file_key, derive_header_mac_key
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.wrapped_keys import kept_protector_key, open_history_key
from tdefs.keys.protectors.base import Protector

#: A key is searched for in pieces of so many bytes that begin every four: any 15 in a row are found.
PIECE = 12
_STEP = 4


class KeyBytes:
    """What must not be found: keys, by a name each, in every form of every piece."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._forms: dict[bytes, str] = {}

    def add_key(self, name: str, key: bytes) -> None:
        """Add a key of random bytes."""
        self.names.add(name)
        for start in range(0, len(key) - PIECE + 1, _STEP):
            for form in forms(key[start : start + PIECE]):
                self._forms[form] = name

    def add_text(self, name: str, text: str) -> None:
        """Add a secret that is a text, such as a passphrase, or half of it."""
        self.names.add(name)
        half = len(text) // 2
        for part in (text[:half], text[half:]):
            for form in (part.encode(), *forms(part.encode())):
                self._forms[form] = name

    def add_keystore(self, path: Path, protector: Protector) -> None:
        """Add all the keys that a keystore has now."""
        unlocked = load_keystore(path).open(protector)
        document, master = unlocked.document, unlocked.master
        self.add_key(f"master key {master.name}", master.secret)
        for key in unlocked.ring:
            self.add_key(f"data key {key.name} round {key.round}", key.secret)
            self.add_key(f"header MAC key of {key.name} round {key.round}", derive_header_mac_key(key))
        for entry in document.protectors:
            name = f"protector key of {entry.id} at revision {document.revision}"
            self.add_key(name, kept_protector_key(document.volume_id, entry, master))
        assert document.history
        self.add_key("history key", open_history_key(document.volume_id, document.history, master))

    def add_files(self, backing: Path, keystore: Path, protector: Protector) -> None:
        """Add the key of every encrypted file that lies in the backing directory now."""
        ring = load_keystore(keystore).unlock(protector)
        for path in files_below(backing):
            with path.open("rb") as file:
                page = file.read(HEADER_SIZE)
            try:
                header = decode_header(page, ring.volume_id)
            except FormatError:
                continue
            self.add_key(
                f"file key of {path.name}",
                derive_file_key(
                    ring.get(header.key_name, header.key_round),
                    header.file_id,
                    suite_of(header.suite).file_key_purpose,
                    suite_of(header.suite).file_key_bytes,
                ),
            )

    def found_in(self, content: bytes) -> set[str]:
        """The names of what is in ``content``."""
        return {name for form, name in self._forms.items() if form in content}

    def found_below(self, directory: Path, but: Path) -> dict[str, set[str]]:
        """What is in the files below a directory, by path, without those below ``but``; names count as content."""
        found = {
            str(path): self.found_in(bytes(path) + b"\n" + path.read_bytes())
            for path in files_below(directory)
            if but not in path.parents
        }
        return {path: names for path, names in found.items() if names}


def forms(data: bytes) -> Iterator[bytes]:
    """``data`` as it is, in hexadecimal, in base64 wherever it begins in a longer text, and as Python shows it."""
    yield data
    for text in (data.hex(), data.hex(":"), data.hex(" ")):
        yield from (text.encode(), text.upper().encode())
    for ahead in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(bytes(ahead) + data)
            # what the bytes before and after it change
            whole = encoded[-(-ahead * 8 // 6) : len(bytes(ahead) + data) * 8 // 6]
            yield from (whole, whole.lower(), whole.upper())
    yield base64.b32encode(data)[: len(data) * 8 // 5]
    yield repr(data)[2:-1].encode()
    yield ", ".join(str(byte) for byte in data).encode()
    yield str(int.from_bytes(data, "big")).encode()


def files_below(directory: Path) -> list[Path]:
    """The regular files below a directory."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())

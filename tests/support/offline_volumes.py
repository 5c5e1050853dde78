"""Small volumes for the tests, written without a mount."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tdefs.cli.main import COMMANDS, build_parser
from tdefs.data.forms import Expectations, FileForms
from tdefs.data.identity import identity_at
from tdefs.data.link_encryption import LinkCipher
from tdefs.format.header import RECORD_SIZE, Header, decode_header
from tdefs.format.layout import HEADER_SIZE
from tdefs.format.suite1.pages import page_cipher
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.entries import Statements
from tdefs.keys.keystore.file import create_keystore, load_keystore
from tdefs.keys.protectors.command import CommandProtector
from tdefs.offline.reader import OfflineReader
from tdefs.pg.control import crc32c
from tdefs.pg.pages import PAGE_SIZE, page_checksums
from tdefs.policy.parse import load_policy
from tdefs.volume.believed import Believed, Opened, opened
from tdefs.volume.description import create_volume, read_volume, save_volume
from tdefs.volume.registry import place_of
from tests.support.stored_file import StoredFile

KEY_COMMAND = "printf %%064d 7"
PG_DATA = Path(__file__).parents[1] / "unit" / "pg" / "data"
SEGMENT_PAGES = 5
#: Where fields of pg_control lie, and their sizes.
_FIELDS = {
    "state": (16, 4),
    "checkpoint": (32, 8),
    "redo": (40, 8),
    "next_xid": (64, 8),
    "segment_pages": (220, 4),
}


class _File:
    """A file as the format's core wants to see it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        assert os.pwrite(self.fd, data, offset) == len(data)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)


class SmallVolume:
    """A volume with the data keys dk_1 and dk_2, and the commands run on it."""

    def __init__(self, root: Path, *, policy: Path | None = None, plain_files: bool = False) -> None:
        """:param policy: one that was accepted; its file may be lost since."""
        self.volume = create_volume(root / "backing", root / "keystore")
        digest = load_policy(policy).digest() if policy is not None and policy.exists() else ""
        self.statements = Statements(plain_files, policy_digest=digest, policy=str(policy or ""))
        self.ring = create_keystore(
            self.volume.keystore,
            self.volume.volume_id,
            CommandProtector(KEY_COMMAND),
            data_key_names=("dk_1", "dk_2"),
            place=place_of(self.volume),
            statements=self.statements,
        )
        self.history_key = history_key_of(self.ring)
        save_volume(self.volume, self.history_key)
        self.volume = read_volume(self.volume.backing)
        self.forms = FileForms(
            self.ring, Expectations(self.ring.volume_id, plain_files=plain_files, lost_headers=False)
        )

    def path(self, relpath: str) -> Path:
        """Return where the file is stored, with its directory made."""
        path = self.volume.data / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def encrypt(self, relpath: str, content: bytes, *, key: str | None = None, length: int = 0) -> Header:
        """Write an encrypted file; behind its content it is a hole up to *length*."""
        header = self.forms.new_header(key, identity_at(relpath))
        store = _File(self.path(relpath))
        store.truncate(HEADER_SIZE)
        store.pwrite(self.forms.encode(header), 0)
        file = StoredFile(store, page_cipher(self.forms.file_key(header)), HEADER_SIZE)
        file.write(0, content)
        if length > len(content):
            file.truncate(length)
        os.close(store.fd)
        return header

    def rename(self, relpath: str, new: str) -> None:
        """Give an encrypted file another name, as a rename through the mount does."""
        stored = bytearray(self.path(relpath).read_bytes())
        header = decode_header(bytes(stored[:RECORD_SIZE]), self.ring.volume_id).bound_to(identity_at(new))
        stored[:RECORD_SIZE] = self.forms.encode(header)
        self.path(new).write_bytes(stored)
        self.path(relpath).unlink()

    def link(self, relpath: str, target: str, *, key: str | None = None, of: str | None = None) -> None:
        """Make a symbolic link as a mount does; *of* is the path that it belongs at, if not this one."""
        text = LinkCipher(lambda: self.ring).encrypt(target.encode(), ((of or relpath).encode(),), key)
        self.path(relpath).symlink_to(text.decode())

    def plain(self, relpath: str, content: bytes) -> None:
        """Write a file as it is."""
        self.path(relpath).write_bytes(content)

    def cluster(self, directory: str = "", control: str = "pg15_checksums", **changes: int) -> None:
        """Make a directory a cluster by its pg_control, captured from a real one, and what no cluster lacks.

        A full segment of a relation has :data:`SEGMENT_PAGES`; *changes* are others to pg_control, by field.
        """
        self.encrypt(f"{directory}global/pg_control", control_file(control, **changes))
        for path in ("PG_VERSION", "base/5/PG_VERSION"):
            self.encrypt(directory + path, b"15\n")
        for path in ("global/pg_filenode.map", "base/5/pg_filenode.map"):
            self.encrypt(directory + path, relation_map())
        self.encrypt(f"{directory}pg_wal/000000010000000000000001", b"", length=16 << 20)
        self.encrypt(f"{directory}pg_xact/0000", bytes(PAGE_SIZE))

    def damage(self, relpath: str, offset: int, mask: int = 1) -> None:
        """Change bits of one stored byte."""
        path = self.volume.data / relpath
        stored = bytearray(path.read_bytes())
        stored[offset] ^= mask
        path.write_bytes(stored)

    @property
    def known(self) -> Opened:
        """What is certain of the volume for a program that has its keys."""
        keystore = self.volume.keystore
        return opened(self.volume, load_keystore(keystore).open(CommandProtector(KEY_COMMAND)), keystore)

    @property
    def believed(self) -> Believed:
        """What is believed of the volume."""
        return self.known.believed

    def reader(self) -> OfflineReader:
        """What reads its files without a mount."""
        return OfflineReader(self.volume, self.ring, self.believed)

    def mounted_at(self, mountpoint: str, *, clean: bool) -> None:
        """Leave the volume as a daemon does that had it mounted, and was killed unless the end was *clean*."""
        book = self.known.book
        assert not book.begin(4242, mountpoint, plain_files=self.statements.plain_files)
        if clean:
            assert not book.end()

    def crash(self) -> None:
        """Leave the volume as a daemon that was killed does."""
        self.mounted_at("/mnt", clean=False)

    def cut(self, relpath: str, size: int) -> None:
        """Cut a stored file."""
        os.truncate(self.volume.data / relpath, size)


def control_file(name: str, **changes: int) -> bytes:
    """Return a captured pg_control with other values in some fields, and a CRC that fits."""
    content = bytearray((PG_DATA / f"{name}.pg_control").read_bytes())
    for field, value in {"segment_pages": SEGMENT_PAGES, **changes}.items():
        at, size = _FIELDS[field]
        content[at : at + size] = value.to_bytes(size, "little")
    content[288:292] = crc32c(bytes(content[:288])).to_bytes(4, "little")
    return bytes(content)


def relation_map() -> bytes:
    """Return a pg_filenode.map of PostgreSQL 15 without mappings."""
    content = struct.pack("<II", 0x592717, 0) + bytes(62 * 8)
    return content + crc32c(content).to_bytes(4, "little") + bytes(4)


class Command:
    """Run one command of the command line in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.errors = ""

    def run(self, module: ModuleType, *arguments: str | Path) -> tuple[int, str]:
        """Return exit code and output; an error that reaches the user is raised."""
        place = module.__name__.removeprefix("tdefs.cli.")
        command = next(name for name, one in COMMANDS.items() if one == place)
        args = build_parser(command).parse_args([command, *map(str, arguments)])
        code: int = args.run(args)
        captured = self._capture.readouterr()
        self.errors = captured.err
        return code, captured.out

    def json(self, module: ModuleType, *arguments: str | Path) -> Any:
        """Return what the command prints as JSON."""
        return json.loads(self.run(module, *arguments, "--json")[1])


def good_pages(count: int, first_block: int = 0) -> bytes:
    """Return empty heap pages with right checksums."""
    pages = bytearray()
    for block in range(first_block, first_block + count):
        page = bytearray(PAGE_SIZE)
        for offset, value in ((12, 24), (14, 8192 - 64), (16, 8192), (18, 0x2004)):
            page[offset : offset + 2] = value.to_bytes(2, "little")
        page[-64:] = block.to_bytes(4, "little") * 16
        page[8:10] = page_checksums(page, block)[0].to_bytes(2, "little")
        pages += page
    return bytes(pages)

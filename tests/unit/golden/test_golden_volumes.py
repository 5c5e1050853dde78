"""Every released format version stays readable, by tdefs and from docs/FORMAT.md alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tdefs.data.calls import SystemCalls
from tdefs.data.complaints import Complaints
from tdefs.data.forms import Encrypted, Expectations, FileForms, Form, Plain
from tdefs.format.header import ANY_PLACE, FileClass, named, of_class
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.protectors.command import CommandProtector
from tdefs.policy.in_use import PolicyInUse
from tdefs.policy.model import Policy
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode
from tdefs.tree.namespace import Namespace
from tdefs.tree.tree import Tree
from tdefs.volume.description import read_volume
from tests.support.served_volume import read_all
from tests.unit.golden import by_the_book

VERSIONS = sorted(path.name for path in (Path(__file__).parents[2] / "golden").iterdir() if path.is_dir())
BOOK = Path(by_the_book.__file__)


@dataclass(frozen=True)
class Golden:
    """A copy of a golden directory, as a volume that was moved here."""

    root: Path
    #: Of files.
    expected: dict[str, Any]
    #: Of symbolic links.
    targets: dict[str, str]

    @property
    def data(self) -> Path:
        return self.backing / "data"

    @property
    def backing(self) -> Path:
        return self.root / "backing"

    @property
    def keystore(self) -> Path:
        return self.backing / ".tdefs/keystore"

    @property
    def key(self) -> str:
        return (self.root / "key.txt").read_text().strip()


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    source = Path(__file__).parents[2] / "golden" / request.param
    root = tmp_path / "golden"
    shutil.copytree(source, root, symlinks=True)
    expected = json.loads((root / "expected.json").read_text())
    targets = {path: expected.pop(path)["target"] for path in list(expected) if "target" in expected[path]}
    copy = Golden(root, expected, targets)
    # git keeps neither modes nor hard links
    copy.keystore.chmod(0o600)
    (copy.data / "base/16384/16392").unlink()
    (copy.data / "base/16384/16392").hardlink_to(copy.data / "base/16384/16391")
    return copy


class Reader:
    """tdefs's own code on a golden volume, without a kernel."""

    def __init__(self, golden: Golden) -> None:
        volume = read_volume(golden.backing)
        keystore = load_keystore(golden.keystore)
        keystore.check_volume(volume.volume_id)
        ring = keystore.unlock(CommandProtector(f"cat '{golden.root / 'key.txt'}'"))
        calls = SystemCalls()
        self._root_fd = os.open(golden.data, os.O_RDONLY | os.O_DIRECTORY)
        self._tree = Tree(calls, self._root_fd)
        forms = FileForms(ring, Expectations(ring.volume_id, plain_files=True, lost_headers=False))
        self._files = Files(self._tree, forms, PolicyInUse(Policy.everything()), Complaints())
        self._opener = self._files.opener
        self._namespace = Namespace(self._files)

    def close(self) -> None:
        self._tree.close()
        os.close(self._root_fd)

    def _inode(self, relpath: str) -> Inode:
        node = self._tree.root
        for name in relpath.split("/"):
            node, _ = self._namespace.lookup(node, name.encode())
        return node

    def content(self, relpath: str) -> bytes:
        inode = self._inode(relpath)
        file = self._opener.open(inode, writable=False)
        content = read_all(file)
        self._opener.close_if_unused(inode)
        return content

    def target(self, relpath: str) -> str:
        return os.fsdecode(self._namespace.readlink(self._inode(relpath)))

    def form(self, relpath: str) -> Form:
        return self._files.headers.form(self._inode(relpath))


def described(content: bytes) -> dict[str, int | str]:
    return {"length": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_every_format_version_has_a_golden_directory() -> None:
    assert VERSIONS == ["v2"]


def test_tdefs_reads_every_file_of_every_version(golden: Golden) -> None:
    reader = Reader(golden)
    found = {path: described(reader.content(path)) for path in golden.expected}
    reader.close()
    assert found == golden.expected


def test_the_listing_has_every_file(golden: Golden) -> None:
    files = {str(path.relative_to(golden.data)) for path in golden.data.rglob("*") if not path.is_dir()}
    assert files == {*golden.expected, *golden.targets}


def test_links_lead_where_they_did(golden: Golden) -> None:
    reader = Reader(golden)
    assert {path: reader.target(path) for path in golden.targets} == golden.targets
    reader.close()
    volume_id = bytes.fromhex(json.loads((golden.backing / ".tdefs/volume.json").read_text())["volume_id"])
    keys = by_the_book.data_keys(golden.keystore.read_bytes(), bytes.fromhex(golden.key))
    by_book = {
        path: by_the_book.link_target(os.fsencode((golden.data / path).readlink()), path, volume_id, keys)
        for path in golden.targets
    }
    assert by_book == {path: target.encode() for path, target in golden.targets.items()}
    assert by_book


def test_a_decryptor_written_from_the_book_reads_every_file(golden: Golden) -> None:
    volume_id = bytes.fromhex(json.loads((golden.backing / ".tdefs/volume.json").read_text())["volume_id"])
    keys = by_the_book.data_keys(golden.keystore.read_bytes(), bytes.fromhex(golden.key))
    found = {
        path: described(by_the_book.decrypt_file((golden.data / path).read_bytes(), volume_id, keys))
        for path in golden.expected
    }
    assert found == golden.expected


def test_the_decryptor_from_the_book_runs_by_itself(golden: Golden) -> None:
    path = "pg_xact/0000"
    # -I: without the directory of this repository in the search path
    command = [sys.executable, "-I", *map(str, (BOOK, golden.backing, golden.keystore, golden.key, path))]
    done = subprocess.run(command, capture_output=True, check=True)
    assert described(done.stdout) == golden.expected[path]
    assert "import tdefs" not in BOOK.read_text()
    assert "from tdefs" not in BOOK.read_text()


def test_the_golden_directory_has_one_of_everything(golden: Golden) -> None:
    reader = Reader(golden)
    forms = {path: reader.form(path) for path in golden.expected}
    reader.close()
    headers = {path: form.header for path, form in forms.items() if isinstance(form, Encrypted)}
    assert [path for path, form in forms.items() if isinstance(form, Plain)] == ["PG_VERSION"]
    assert headers["base/16384/16390"].key_name == "dk_2"
    assert {header.key_name for header in headers.values()} == {"dk_1", "dk_2"}
    assert headers["base/16384/16391"] == headers["base/16384/16392"]
    assert headers["base/16384/16391"].identities == (ANY_PLACE,)
    for path in ("postgresql.conf", "postgresql.auto.conf", "pg_xact/0000"):
        assert headers[path].identities == (named(path.encode()),)
    for path, file_class in (
        ("pg_wal/000000010000000000000001", FileClass.WAL),
        ("pg_stat/pgstat.stat", FileClass.STATISTICS),
        ("log/postgresql.log", FileClass.LOG),
    ):
        assert headers[path].identities == (of_class(file_class),)
    assert str(headers["base/16384/16385_fsm"].identities[0]) == "relation file 16385_fsm of database 16384"
    assert str(headers["base/16384/16385.1"].identities[0]) == "relation file 16385.1 of database 16384"
    assert {golden.expected[f"lengths/{length}"]["length"] for length in (0, 1, 15, 16, 17, 8191, 8192, 8193)} == {
        0, 1, 15, 16, 17, 8191, 8192, 8193,
    }  # fmt: skip


def test_no_encrypted_file_shows_its_content(golden: Golden) -> None:
    for path in golden.expected:
        stored = (golden.data / path).read_bytes()
        assert b"line 1" not in stored, path
        assert b"canary" not in stored, path
        assert b"island" not in stored, path


def test_the_maker_of_golden_directories_never_overwrites_one(golden: Golden) -> None:
    script = Path(__file__).parents[3] / "scripts/make-golden.py"
    before = sorted((path, path.read_bytes()) for path in golden.root.rglob("*") if path.is_file())
    done = subprocess.run([sys.executable, script, golden.root], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "never made anew" in done.stderr
    assert sorted((path, path.read_bytes()) for path in golden.root.rglob("*") if path.is_file()) == before

"""What lies in the backing directory: nothing in the clear but what the policy leaves so."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable
from errno import EXDEV
from pathlib import Path

import pytest

from tests.fs.libc import RENAME_EXCHANGE, renameat2
from tests.support.scan import files_with
from tests.support.volume import Volume, relative_files
from tests.support.workspace import Workspace

HEADER = 8192
PAGE = bytes(range(256)) * 32
CANARY = "CANARY-5d2f9-in-clear"

#: One path of each kind that a policy can name.
PATHS = {
    "relation": "base/16384/16385",
    "catalog": "base/16384/1259",
    "stray": "base/16384/nobody's",
    "relation_map": "base/16384/pg_filenode.map",
    "relcache": "base/16384/pg_internal.init",
    "wal": "pg_wal/000000010000000000000001",
    "slru": "pg_xact/0000",
    "control": "global/pg_control",
    "temp": "base/pgsql_tmp/pgsql_tmp100.0",
    "replication": "pg_replslot/slot/state",
    "two_phase": "pg_twophase/00000001",
    "statistics": "pg_stat/pgstat.stat",
    "configuration": "postgresql.conf",
    "log": "log/postgresql.log",
    "lock": "postmaster.pid",
    "version": "PG_VERSION",
    "backup": "backup_label",
    "signal": "standby.signal",
    "other": "anything",
}


def put(volume: Volume, path: str, data: bytes) -> None:
    (volume.mountpoint / path).parent.mkdir(parents=True, exist_ok=True)
    (volume.mountpoint / path).write_bytes(data)


def stored(volume: Volume, path: str) -> bytes:
    """What lies on the disk, header aside."""
    return (volume.data / path).read_bytes()[HEADER:]


def in_clear(volume: Volume) -> set[str]:
    """The kinds whose file holds the canary readably."""
    found = files_with(volume.backing, [CANARY])[CANARY]
    return {kind for kind, path in PATHS.items() if f"data/{path}" in found}


def test_identical_pages_differ_in_the_backing_files(volume: Volume) -> None:
    """In two files, in one file at two positions, and in a file that was made anew."""
    volume.mount()
    for name in ("base/5/16385", "base/5/16386"):
        put(volume, name, PAGE * 2)
    volume.umount()
    one, two = stored(volume, "base/5/16385"), stored(volume, "base/5/16386")
    assert len(one) == len(two) == 2 * 8192
    pages = [one[:8192], one[8192:], two[:8192], two[8192:]]
    assert len(set(pages)) == 4
    blocks = [page[start : start + 16] for page in pages for start in range(0, 8192, 16)]
    assert len(set(blocks)) == len(blocks)
    volume.mount()
    (volume.mountpoint / "base/5/16385").unlink()
    put(volume, "base/5/16385", PAGE * 2)
    volume.umount()
    assert stored(volume, "base/5/16385")[:8192] not in pages


def test_volumes_with_the_same_content_have_nothing_in_common(scratch: Workspace, volume: Volume) -> None:
    other = scratch.volume("other")
    other.key_file.write_text(volume.key_file.read_text())
    other.init()
    for one in (volume, other):
        one.mount()
        put(one, "base/5/16385", PAGE)
        one.umount()
    mine, others = stored(volume, "base/5/16385"), stored(other, "base/5/16385")
    assert all(mine[start : start + 16] != others[start : start + 16] for start in range(0, 8192, 16))


WRITERS: dict[str, Callable[[Path], object]] = {
    "write": lambda path: path.write_text(CANARY * 1000),
    "one byte at a time": lambda path: _one_by_one(path),
    "after a hole": lambda path: _at(path, 100_000),
    "at the very end of a page": lambda path: _at(path, 8192 - len(CANARY)),
    "across pages": lambda path: _at(path, 8190),
    "then cut": lambda path: _truncated(path, CANARY * 1000, 100),
    "then made longer": lambda path: _truncated(path, CANARY, 100_000),
    "under another name, renamed": lambda path: (
        path.with_name("new").write_text(CANARY),
        path.with_name("new").rename(path),
    ),
    "mapped": lambda path: _mapped(path),
    "direct": lambda path: subprocess.run(
        ["dd", f"of={path}", "oflag=direct", "bs=4096", "status=none"], input=CANARY.encode() * 4096, check=True
    ),
}


def _one_by_one(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for byte in CANARY.encode():
            file.write(bytes([byte]))
            os.fdatasync(file.fileno())


def _truncated(path: Path, text: str, length: int) -> None:
    path.write_text(text)
    os.truncate(path, length)


def _at(path: Path, offset: int) -> None:
    with path.open("wb") as file:
        file.seek(offset)
        file.write(CANARY.encode())


def _mapped(path: Path) -> None:
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[100 : 100 + len(CANARY)] = CANARY.encode()


def test_nothing_written_in_any_way_is_in_any_backing_byte(volume: Volume) -> None:
    volume.mount()
    for number, (name, writer) in enumerate(WRITERS.items()):
        directory = volume.mountpoint / f"{number}"
        directory.mkdir()
        writer(directory / "file")
        assert CANARY.encode() in (directory / "file").read_bytes() or name == "then cut"
        os.sync()
        assert files_with(volume.backing, [CANARY])[CANARY] == set(), name
    volume.umount()
    assert files_with(volume.backing, [CANARY])[CANARY] == set()
    # not even a piece of it at a block's boundary
    assert files_with(volume.backing, [CANARY[:8], CANARY[-8:]]) == {CANARY[:8]: set(), CANARY[-8:]: set()}


def test_without_a_policy_no_kind_of_file_is_in_clear(volume: Volume) -> None:
    volume.mount()
    for path in PATHS.values():
        put(volume, path, CANARY.encode() * 500)
    volume.umount()
    assert in_clear(volume) == set()
    assert relative_files(volume.data) == sorted(PATHS.values())


@pytest.mark.parametrize(
    ("policy", "plain"),
    [
        pytest.param(
            "version: 1\nkinds: {configuration: plain, version: plain}\n", {"configuration", "version"}, id="kinds"
        ),
        pytest.param(
            "version: 1\ndefault: plain\n", set(PATHS) - {"relation", "catalog", "stray"}, id="default plain"
        ),
        pytest.param(
            "version: 1\ndefault: plain\nkinds: {wal: dk_1, temp: dk_2}\n",
            set(PATHS) - {"relation", "catalog", "stray", "wal", "temp"},
            id="default plain with exceptions",
        ),
        pytest.param(
            "version: 1\ndatabases:\n  - {database: 16384, key: plain}\n",
            {"relation", "catalog", "stray", "relation_map", "relcache"},
            id="database",
        ),
        pytest.param(
            "version: 1\nrelations:\n  - {database: 16384, relfilenodes: [16385], key: plain}\n",
            {"relation"},
            id="relfilenode",
        ),
    ],
)
def test_with_a_policy_exactly_what_it_leaves_plain_is_in_clear(
    scratch: Workspace, policy: str, plain: set[str]
) -> None:
    volume = scratch.volume("policy")
    volume.init(policy=policy)
    volume.mount()
    for path in PATHS.values():
        put(volume, path, CANARY.encode() * 500)
    volume.umount()
    assert in_clear(volume) == plain
    for kind in plain:
        assert (volume.data / PATHS[kind]).read_bytes() == CANARY.encode() * 500
    volume.mount()
    for path in PATHS.values():
        assert (volume.mountpoint / path).read_bytes() == CANARY.encode() * 500


PLAIN_CONFIGURATION = "version: 1\nkinds: {configuration: plain}\n"


@pytest.fixture
def selective(scratch: Workspace) -> Volume:
    """A mounted volume that leaves configuration plain, with one such file."""
    volume = scratch.volume("selective")
    volume.init(policy=PLAIN_CONFIGURATION)
    volume.mount()
    put(volume, "pg_hba.conf", CANARY.encode())
    put(volume, "base/5/16385", b"encrypted")
    (volume.mountpoint / "conf.d").mkdir()
    (volume.mountpoint / "conf.d" / "any").write_text(CANARY)
    return volume


MOVES: dict[str, Callable[[Path], object]] = {
    "rename": lambda root: (root / "pg_hba.conf").rename(root / "other"),
    "rename to a relation file": lambda root: (root / "pg_hba.conf").rename(root / "base/5/16386"),
    "replace": lambda root: (root / "pg_hba.conf").rename(root / "base/5/16385"),
    "exchange": lambda root: renameat2(root / "pg_hba.conf", root / "base/5/16385", RENAME_EXCHANGE),
    "exchange the other way": lambda root: renameat2(root / "base/5/16385", root / "pg_hba.conf", RENAME_EXCHANGE),
    "link": lambda root: (root / "base/5/16386").hardlink_to(root / "pg_hba.conf"),
    "rename of a directory": lambda root: (root / "conf.d").rename(root / "pg_wal"),
}


def test_a_plain_file_does_not_get_to_a_place_of_encrypted_ones(selective: Volume) -> None:
    root = selective.mountpoint
    before = relative_files(root)
    for name, move in MOVES.items():
        with pytest.raises(OSError) as error:
            move(root)
        assert error.value.errno == EXDEV, name
        assert relative_files(root) == before, name
        assert (root / "pg_hba.conf").read_text() == CANARY, name
        assert (root / "base/5/16385").read_bytes() == b"encrypted", name


def test_mv_encrypts_on_the_way(selective: Volume) -> None:
    root = selective.mountpoint
    subprocess.run(["mv", root / "pg_hba.conf", root / "base" / "5" / "16386"], check=True)
    subprocess.run(["mv", root / "conf.d", root / "pg_wal"], check=True)
    assert (root / "base/5/16386").read_text() == CANARY
    assert (root / "pg_wal/any").read_text() == CANARY
    selective.umount()
    assert files_with(selective.backing, [CANARY])[CANARY] == set()


def test_an_encrypted_file_that_gets_a_plain_place_stays_encrypted(selective: Volume) -> None:
    root = selective.mountpoint
    put(selective, "secret", CANARY.encode())
    (root / "pg_hba.conf").unlink()
    (root / "conf.d" / "any").unlink()
    (root / "secret").rename(root / "pg_hba.conf")
    (root / "copy.conf").hardlink_to(root / "pg_hba.conf")
    selective.umount()
    assert files_with(selective.backing, [CANARY])[CANARY] == set()
    selective.mount()
    assert (root / "pg_hba.conf").read_text() == (root / "copy.conf").read_text() == CANARY


def test_a_plain_file_emptied_and_written_anew_stays_what_it_was(selective: Volume) -> None:
    """A file says itself what it is; only a new file asks the policy."""
    root = selective.mountpoint
    (selective.root / "policy.yaml").write_text("version: 1\n")
    selective.umount()
    selective.mount()
    assert (root / "pg_hba.conf").read_text() == CANARY
    with (root / "pg_hba.conf").open("a") as file:
        file.write(CANARY)
    assert (root / "pg_hba.conf").read_text() == CANARY * 2
    (root / "new.conf").write_text("another " + CANARY)
    selective.umount()
    assert files_with(selective.backing, [CANARY])[CANARY] == {"data/pg_hba.conf", "data/conf.d/any"}
    selective.mount()
    assert (root / "new.conf").read_text() == "another " + CANARY


def test_a_plain_file_of_zeros_stays_readable(selective: Volume) -> None:
    root = selective.mountpoint
    texts = {"zeros.conf": bytes(20_000), "short.conf": bytes(10)}
    for name, data in texts.items():
        (root / name).write_bytes(data)
    selective.umount()
    selective.mount()
    assert {name: (root / name).read_bytes() for name in texts} == texts


def test_a_plain_file_may_not_start_like_an_encrypted_one(selective: Volume) -> None:
    """A copy of a backing file, say, kept as configuration: it could not be told from a damaged one."""
    path = selective.mountpoint / "magic.conf"
    with pytest.raises(PermissionError), path.open("wb", buffering=0) as file:
        file.write(b"\x89TDEFS\r\n" + b"x" * 9000)
        os.fsync(file.fileno())
    assert (
        "magic.conf: a file stored in the clear may not start like an encrypted one" in selective.log.read_text()
    )
    selective.umount()
    selective.mount()
    assert path.read_bytes() == b""


def test_a_canary_in_a_file_that_was_removed_is_in_no_backing_file(volume: Volume) -> None:
    volume.mount()
    with (volume.mountpoint / "file").open("wb") as file:
        file.write(CANARY.encode() * 5000)
        (volume.mountpoint / "file").unlink()
        os.fsync(file.fileno())
        assert files_with(volume.backing, [CANARY])[CANARY] == set()
        (daemon,) = volume.daemons
        for entry in Path(f"/proc/{daemon}/fd").iterdir():
            if "(deleted)" in os.readlink(entry):  # noqa: PTH115
                assert CANARY.encode() not in entry.read_bytes()

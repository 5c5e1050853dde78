"""Who writes to the backing directory, without a key and while the volume is unmounted, makes no file another's.

What the manifest notices is served all the same here: this is what each file holds by itself.

Covers the identities of tdefs/data/forms.py, tdefs/tree/file_ids.py and the duplicates of
tdefs/offline/verifying.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EIO
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.volume import Volume
from tests.support.workspace import Workspace

HEADER = 8192
SECTOR = 512
SEGMENT = "000000010000000000000001"

#: One of each kind that is bound to its name, or to a relation's numbers; all of these names have unit tests.
BOUND = (
    "global/pg_control",
    "pg_xact/0000",
    "pg_multixact/offsets/0000",
    "pg_multixact/members/0000",
    "pg_commit_ts/0000",
    "pg_hba.conf",
    "PG_VERSION",
    "base/5/pg_filenode.map",
    "pg_twophase/000002F1",
    "postmaster.pid",
    "standby.signal",
    "base/5/16385",
    "base/5/16385_vm",
)
#: Two of each class.
CLASSES = {
    "WAL": (f"pg_wal/{SEGMENT}", "pg_wal/000000010000000000000002"),
    "relation cache": ("base/5/pg_internal.init", "global/pg_internal.init"),
    "temporary": ("base/pgsql_tmp/pgsql_tmp7.0", "base/pgsql_tmp/pgsql_tmp7.1"),
    "replication": ("pg_replslot/one/state", "pg_logical/replorigin_checkpoint"),
    "statistics": ("pg_stat/pgstat.stat", "pg_stat/pg_stat_statements.stat"),
    "log": ("log/thursday.log", "log/friday.log"),
    "backup": ("backup_label.old", "backup_manifest"),
    "stray": ("base/5/one", "base/5/two"),
    "other": ("notes.txt", "server.key"),
}
CLASS_OF = {path: name for name, paths in CLASSES.items() for path in paths}
#: Every kind with every other one, and some with another one of their own.
PAIRS = [
    *itertools.permutations((*BOUND, *(paths[0] for paths in CLASSES.values())), 2),
    *(pair for paths in CLASSES.values() for pair in (paths, paths[::-1])),
    ("pg_xact/0000", "pg_xact/0001"),
    ("pg_hba.conf", "postgresql.auto.conf"),
    ("PG_VERSION", "base/5/PG_VERSION"),
    ("base/5/16385", "base/5/16385.1"),
    ("base/5/16385", "base/6/16385"),
]


def content(path: str) -> bytes:
    """What is in a file: a page and a half that tell its name."""
    return (f"{path}\n".encode() * 2000)[:12_000]


def outcome(path: Path, root: Path) -> str:
    """Whose content a file has, or how its opening failed."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        assert error.errno == EIO, error
        return "EIO"
    name = found.split(b"\n", 1)[0].decode()
    assert found == content(name), f"{path.relative_to(root)} is garbled"
    return name


@dataclass(frozen=True)
class Pair:
    """Two files in a directory of their own, which stands for a cluster's."""

    directory: str
    one: str
    two: str

    @property
    def share_a_class(self) -> bool:
        return self.one in CLASS_OF and CLASS_OF[self.one] == CLASS_OF.get(self.two)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [Pair(f"{number:04}", one, two) for number, (one, two) in enumerate(PAIRS)]


@pytest.fixture(scope="module")
def original(workspace: Workspace, pairs: list[Pair]) -> Iterator[tuple[Volume, Path]]:
    """An unmounted volume with a directory for each pair, and a copy of all of it."""
    volume = workspace.volume("pairs")
    volume.init()
    volume.mount()
    for pair in pairs:
        for path in (pair.one, pair.two):
            place = volume.mountpoint / pair.directory / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content(path))
    volume.umount()
    kept = workspace.directory("kept") / "copy"
    shutil.copytree(volume.root, kept)
    yield volume, kept
    workspace.volumes.remove(volume)


@pytest.fixture
def filled(original: tuple[Volume, Path]) -> Iterator[Volume]:
    """That volume as it was."""
    volume, kept = original
    shutil.rmtree(volume.root)
    shutil.copytree(kept, volume.root)
    yield volume
    volume.discard()


def copied(data: Path, pair: Pair) -> None:
    shutil.copyfile(data / pair.one, data / pair.two)


def moved(data: Path, pair: Pair) -> None:
    (data / pair.one).rename(data / pair.two)


def swapped(data: Path, pair: Pair) -> None:
    (data / pair.one).rename(data / "aside")
    (data / pair.two).rename(data / pair.one)
    (data / "aside").rename(data / pair.two)


def header_copied(data: Path, pair: Pair) -> None:
    with (data / pair.two).open("r+b") as file:
        file.write((data / pair.one).read_bytes()[:HEADER])


@pytest.mark.parametrize("act", [copied, header_copied, moved, swapped])
def test_no_file_is_taken_for_another_one_and_verify_names_it(
    filled: Volume, pairs: list[Pair], act: Callable[[Path, Pair], None]
) -> None:
    for pair in pairs:
        act(filled.data / pair.directory, pair)
    _check_report(filled, pairs, act)
    filled.mount(*filled.reporting)
    found, expected = {}, {}
    for pair in pairs:
        root = filled.mountpoint / pair.directory
        places = [root / pair.one, root / pair.two]
        for place in places:  # as a program that looks for its files, and then opens them
            with suppress(OSError):
                place.stat()
        found[pair] = tuple(outcome(place, root) for place in places)
        expected[pair] = _expected(act, pair)
    filled.umount()
    assert found == expected


def _expected(act: Callable[[Path, Pair], None], pair: Pair) -> tuple[str, str]:
    if act in (copied, header_copied):
        # of two that may lie there, both are refused; of one that may not, that one
        return ("EIO", "EIO") if pair.share_a_class else (pair.one, "EIO")
    if act is moved:
        return ("missing", pair.one) if pair.share_a_class else ("missing", "EIO")
    # within a class PostgreSQL renames: nothing in a file tells that it was not it
    return (pair.two, pair.one) if pair.share_a_class else ("EIO", "EIO")


def _check_report(volume: Volume, pairs: list[Pair], act: Callable[[Path, Pair], None]) -> None:
    done = volume.tdefs("verify", volume.backing, "--json", *volume.unlock, check=False)
    assert done.returncode == Exit.VERIFY_FOUND_DAMAGE
    found: dict[str, str] = {}
    for one in json.loads(done.stdout)["findings"]:
        found[one["path"]] = found.get(one["path"], "") + one["error"] + "\n"
    for pair in pairs:
        of_one, of_two = (found.get(f"{pair.directory}/{path}", "") for path in (pair.one, pair.two))
        if act in (copied, header_copied):
            assert f'its file id is also that of "{pair.directory}/{pair.two}"' in of_one, pair
            assert f'its file id is also that of "{pair.directory}/{pair.one}"' in of_two, pair
        else:
            assert ("but lies in the place of" in of_two) != pair.share_a_class, pair
            assert ("but lies in the place of" in of_one) == (act is swapped and not pair.share_a_class), pair


# --- blocks of one file, spliced into another


PAYLOAD = b"host all all 0.0.0.0/0 trust\n"
LINE = (PAYLOAD + b"#" * SECTOR)[:SECTOR]

#: What an outsider can have written, and what shall be replaced by it.
CHANNELS = ("log/next.log", "notes.txt", "pg_stat/pg_stat_statements.stat", "base/5/16385")
VICTIMS = ("pg_hba.conf", "postgresql.auto.conf", "server.key", "log/old.log", "pg_xact/0000", "base/5/16390")


def test_a_copied_header_lets_nobody_splice_blocks_of_one_file_into_another(volume: Volume) -> None:
    """The header of a victim is copied to the name of a file that will be made, such as next Friday's log."""
    cases = [
        (f"{number:02}/{channel}", f"{number:02}/{victim}")
        for number, (channel, victim) in enumerate(itertools.product(CHANNELS, VICTIMS))
    ]
    lines = b"host all all 127.0.0.1/32 scram-sha-256\n" * 100
    volume.mount()
    for case in cases:
        for path in case:
            (volume.mountpoint / path).parent.mkdir(parents=True, exist_ok=True)
        (volume.mountpoint / case[1]).write_bytes(lines)
    volume.umount()

    for channel, victim in cases:
        (volume.data / channel).write_bytes((volume.data / victim).read_bytes()[:HEADER])
    volume.mount(*volume.reporting)
    for channel, _ in cases:
        try:
            with (volume.mountpoint / channel).open("ab") as file:
                file.write(LINE * 4)
        except OSError as error:
            assert error.errno == EIO
    volume.umount()

    for channel, victim in cases:
        written = (volume.data / channel).read_bytes()[HEADER : HEADER + 4 * SECTOR]
        with (volume.data / victim).open("r+b") as file:
            file.seek(HEADER)
            file.write(written)
        (volume.data / channel).unlink()
    volume.mount(*volume.reporting)
    for _, victim in cases:
        try:
            found = (volume.mountpoint / victim).read_bytes()
        except OSError:
            found = b""
        assert PAYLOAD not in found, victim


def test_an_emptied_file_does_not_give_its_old_blocks_to_its_new_content(volume: Volume) -> None:
    """A line that was removed from pg_hba.conf by an editor that truncates comes back by a copy of its blocks."""
    volume.mount()
    place = volume.mountpoint / "pg_hba.conf"
    place.write_bytes(LINE * 16)
    volume.umount()
    kept = (volume.data / "pg_hba.conf").read_bytes()[HEADER:]
    volume.mount()
    place.write_bytes(b"local all all reject\n" * 400)
    volume.umount()
    with (volume.data / "pg_hba.conf").open("r+b") as file:
        file.seek(HEADER)
        file.write(kept)
    volume.mount(*volume.reporting)
    assert PAYLOAD not in place.read_bytes()


def test_the_log_says_both_paths_of_a_copy(volume: Volume) -> None:
    volume.mount()
    for path in ("one.txt", "two.txt"):
        (volume.mountpoint / path).write_bytes(content(path))
    volume.umount()
    shutil.copyfile(volume.data / "one.txt", volume.data / "two.txt")
    volume.mount(*volume.reporting)
    for path in ("one.txt", "two.txt"):
        with suppress(OSError):
            (volume.mountpoint / path).read_bytes()
    assert any('two.txt: its file id is also that of "one.txt"' in line for line in volume.complaints())

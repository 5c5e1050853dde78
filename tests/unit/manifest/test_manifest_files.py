"""Manifest and journal are files of tdefs's own, wherever root may be asked to read or write them.

A volume may be another user's, who puts other things in their place while a command of root's is at work. So what
is written or read is reached from a directory that was looked at, never by a path that leads elsewhere by now.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.data.calls import SystemCalls
from tdefs.manifest.journal import JOURNAL_FILE, PREPARED_BYTES, Journal, prepare_journal, read_journal
from tdefs.manifest.record import Manifest
from tdefs.manifest.state import MANIFEST_FILE, Binding, look, write_manifest
from tdefs.manifest.tree import open_root
from tdefs.private import UntrustedError
from tdefs.volume.description import Volume
from tests.support.children import NOBODY, needs_root

pytestmark = needs_root

KEY = b"k" * 32
VICTIM = b"root's own\n"


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    backing = tmp_path / "backing"
    for directory in (backing, backing / "data", backing / ".tdefs"):
        directory.mkdir(mode=0o700)
    return Volume(backing, b"v" * 16, tmp_path / "keystore")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.mkdir()
    (path / "file").write_bytes(VICTIM)
    return path


def binding(volume: Volume) -> Binding:
    return Binding(volume, KEY, None, volume.keystore, None)


def manifest(volume: Volume) -> Manifest:
    return Manifest(volume.volume_id, 1, {})


#: What reads or writes one of the files.
USES: dict[str, Callable[[Volume], object]] = {
    "write the manifest": lambda volume: write_manifest(volume, manifest(volume), KEY),
    "prepare the journal": prepare_journal,
    "begin the journal": lambda volume: Journal(SystemCalls(), volume, KEY, manifest(volume)),
    "read the journal": lambda volume: read_journal(volume, KEY, manifest(volume)),
}


@pytest.mark.parametrize("use", USES)
def test_a_link_in_the_place_of_the_own_directory_leads_nowhere(volume: Volume, victim: Path, use: str) -> None:
    volume.private.rmdir()
    volume.private.symlink_to(victim)
    with pytest.raises(UntrustedError):
        USES[use](volume)
    assert os.listdir(victim) == ["file"]


@pytest.mark.parametrize("use", ["prepare the journal", "begin the journal", "read the journal"])
@pytest.mark.parametrize("plant", ["symbolic link", "hard link", "FIFO"])
def test_what_is_planted_in_the_place_of_the_journal_is_not_used(
    volume: Volume, victim: Path, use: str, plant: str
) -> None:
    place = volume.private / JOURNAL_FILE
    match plant:
        case "symbolic link":
            place.symlink_to(victim / "file")
        case "hard link":
            place.hardlink_to(victim / "file")
        case _:
            os.mkfifo(place)
    USES[use](volume)
    assert not read_journal(volume, KEY, Manifest(volume.volume_id, 2, {})).begun
    # who is to write it takes it away, so that it keeps nobody from mounting the volume
    assert (not place.is_symlink() and place.is_file() and place.stat().st_nlink == 1) == (
        use != "read the journal"
    )
    assert (victim / "file").read_bytes() == VICTIM


@pytest.mark.parametrize("plant", ["symbolic link", "hard link", "FIFO", "endless"])
def test_what_is_planted_in_the_place_of_the_manifest_counts_as_its_loss(
    volume: Volume, victim: Path, plant: str
) -> None:
    write_manifest(volume, manifest(volume), KEY)
    place = volume.private / MANIFEST_FILE
    good = victim / "manifest"
    place.rename(good)
    match plant:
        case "symbolic link":
            place.symlink_to(good)
        case "hard link":
            place.hardlink_to(good)
        case "FIFO":
            os.mkfifo(place)
        case _:
            place.touch(mode=0o600)
            os.truncate(place, 1 << 42)  # more than any memory, and nothing on the disk
    state = look(binding(volume))
    assert state.manifest is None
    assert state.lost.startswith("cannot be used: ")


def test_what_root_writes_in_a_volume_of_another_user_is_that_users(volume: Volume) -> None:
    for directory in (volume.backing, volume.private):
        os.chown(directory, NOBODY, NOBODY)
    prepare_journal(volume)
    write_manifest(volume, manifest(volume), KEY)
    assert {path.stat().st_uid for path in volume.private.iterdir()} == {NOBODY}


@pytest.mark.parametrize("exchanged", ["data", "backing", "above"])
def test_no_tree_that_a_link_leads_to_is_taken_for_the_volumes(
    volume: Volume, victim: Path, tmp_path: Path, exchanged: str
) -> None:
    other = victim / "backing"
    (other / "data").mkdir(parents=True)
    match exchanged:
        case "data":
            volume.data.rmdir()
            volume.data.symlink_to(other / "data")
        case "backing":
            volume.backing.rename(tmp_path / "moved")
            volume.backing.symlink_to(other)
        case _:
            inner = tmp_path / "inner"
            inner.symlink_to(victim)
            volume = Volume(inner / "backing", volume.volume_id, volume.keystore)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        open_root(volume)


def test_the_journal_does_not_grow_without_bound(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may make files makes long names, too, and the journal takes what the disk keeps for root."""
    monkeypatch.setattr("tdefs.manifest.journal._MAX_BYTES", most := PREPARED_BYTES)
    journal = Journal(SystemCalls(), volume, KEY, manifest(volume))
    try:
        noted = [journal.append([b"%d/" % number + b"d" * 4000 + b"/standby.signal"]) for number in range(100)]
    finally:
        journal.close()
    assert noted.index(False) > 50
    assert (volume.private / JOURNAL_FILE).stat().st_size <= most
    assert read_journal(volume, KEY, manifest(volume)).everything

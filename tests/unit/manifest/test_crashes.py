"""The process dies before any one of its system calls: what it has changed by then is never taken for tampering.

A power cut is worse: what was written and not synced may be gone. So each time all that lies in the journal and
was not synced is taken away, too, and everything else has reached the disk: nothing worse can happen to the order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdefs.data.calls import Owner
from tdefs.data.forms import Expectations, FileForms
from tdefs.data.staging import DIRECTORY as STAGING_DIRECTORY
from tdefs.data.staging import Staging
from tdefs.fuse.operations import FuseOperations
from tdefs.manifest import journal
from tdefs.manifest.bound import Bound
from tdefs.manifest.checking import examine
from tdefs.manifest.journal import JOURNAL_FILE, parse_journal
from tdefs.manifest.state import Binding, State, look
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.tree.attributes import Attributes, Changes
from tdefs.tree.namespace import Namespace
from tdefs.tree.renaming import RENAME_EXCHANGE
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending, LastSession
from tests.support.served_volume import RING, VOLUME_ID, Crash, ScriptedCalls, ServedVolume

TABLE, OTHER, FSM, WAL = (
    "base/16384/16385",
    "base/16384/16390",
    "base/16384/16385_fsm",
    "pg_wal/000000010000000000000001",
)
CONTENT = b"x" * 20_000
KEY = bytes(range(32))


class _JournalIsCut(ScriptedCalls):
    """What was written to the journal and not synced by the time of the crash has not reached the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.unsynced: list[tuple[int, int, int]] = []

    def _call(self, real: Callable[..., Any], label: str, *arguments: Any) -> Any:
        done = super()._call(real, label, *arguments)
        if label == "journal:write":
            fd, data, offset = arguments
            self.unsynced.append((fd, len(data), offset))
        elif label in ("journal:sync", "journal:begin"):
            self.unsynced.clear()
        return done

    def _lose(self) -> None:
        for fd, size, offset in self.unsynced:
            os.pwrite(fd, bytes(size), offset)
        self.unsynced.clear()


class BoundVolume(ServedVolume):
    """A served volume with a manifest; :meth:`rest` unmounts it cleanly, :meth:`crash` does not."""

    def __init__(self, backing: Path) -> None:
        self.volume = Volume(backing, VOLUME_ID, backing / "keystore")
        for directory in (self.volume.private, self.volume.data):
            directory.mkdir(parents=True)
        self.binding = Binding(self.volume, KEY, None, backing / "keystore", None)
        self.manifest = Bound(ScriptedCalls())
        super().__init__(self.volume.data)
        self.calls = _JournalIsCut()
        self.remount()

    def remount(self, **_: Any) -> None:
        self.calls.restart()
        self.state = look(self.binding)
        self.manifest = Bound(self.calls, self.state)
        self.manifest.begin()
        self.forms = FileForms(RING, Expectations(VOLUME_ID, plain_files=False, lost_headers=False))
        self.make_parts(self.manifest)
        if self._staging is not None:
            self._staging.close()
        self._staging = Staging(self.volume.private / STAGING_DIRECTORY)
        self.namespace = Namespace(self.files, self._staging)
        self.operations = FuseOperations(self.files, self._root_fd)

    def rest(self) -> None:
        self.calls.restart()
        self.opener.close_all_idle()
        self.manifest.finish()

    def crash(self) -> None:
        if isinstance(self.calls, _JournalIsCut):
            self.calls._lose()
        self.calls.restart()
        self.manifest.close()

    def found(self) -> State:
        return examine(self.binding)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """As the operation does: what extends is told before."""
        inode = self.inode(path)
        file = self.opener.open(inode, writable=True)
        if inode.bound and offset + len(data) > file.length:
            self.manifest.will_change(inode)
        file.write(offset, data)
        self.opener.close_if_unused(inode)

    def truncate(self, path: str, size: int) -> None:
        Attributes(self.files).change(self.inode(path), Changes(size=size))

    def mkdir(self, path: str) -> None:
        self.namespace.mkdir(*self.place(path), 0o700, Owner(os.geteuid(), os.getegid()))

    def rmdir(self, path: str) -> None:
        self.namespace.rmdir(*self.place(path))

    def symlink(self, path: str, target: bytes) -> None:
        self.namespace.symlink(*self.place(path), target, Owner(os.geteuid(), os.getegid()))


Step = Callable[[BoundVolume], None]

CHANGES: dict[str, list[Step]] = {
    "a write that extends": [lambda v: v.write(TABLE, len(CONTENT), CONTENT)],
    "a write in place": [lambda v: v.write(TABLE, 0, b"y" * 8192)],
    "a write to an empty file": [lambda v: v.write("empty", 0, CONTENT)],
    "a file cut": [lambda v: v.truncate(TABLE, 8192)],
    "a file emptied": [lambda v: v.truncate(TABLE, 0)],
    "a file made longer": [lambda v: v.truncate(TABLE, 1 << 20)],
    "a file removed": [lambda v: v.unlink(TABLE)],
    "a file removed and made anew": [lambda v: v.unlink(TABLE), lambda v: v.create(TABLE, b"new")],
    "a file replaced by a new one": [lambda v: v.create("new", b"new"), lambda v: v.rename("new", TABLE)],
    "a file renamed": [lambda v: v.rename(TABLE, "base/16384/17000")],
    "a file renamed over another": [lambda v: v.rename(TABLE, OTHER)],
    "two files exchanged": [lambda v: v.rename(TABLE, OTHER, RENAME_EXCHANGE)],
    "WAL recycled": [lambda v: v.rename(WAL, "pg_wal/000000010000000000000009")],
    "a second name": [lambda v: v.link(TABLE, "base/16384/17001")],
    "a second name, and a write through it": [
        lambda v: v.link(TABLE, "linked"),
        lambda v: v.write("linked", len(CONTENT), CONTENT),
    ],
    "a write through one of two names": [lambda v: v.write("second", 0, CONTENT * 2)],
    "one of two names removed, and a write through the other": [
        lambda v: v.unlink("several"),
        lambda v: v.write("second", 0, CONTENT * 2),
    ],
    "a directory renamed": [lambda v: v.rename("base/16384", "base/16399")],
    "a directory renamed, and a file written there": [
        lambda v: v.rename("base/16384", "base/16399"),
        lambda v: v.write("base/16399/16385", len(CONTENT), CONTENT),
    ],
    "a directory removed": [lambda v: v.unlink("pg_replslot/s/state"), lambda v: v.rmdir("pg_replslot/s")],
    "a directory made": [lambda v: v.mkdir("base/17000"), lambda v: v.create("base/17000/1", CONTENT)],
    "a directory renamed to where names say something": [
        lambda v: v.mkdir("settings"),
        lambda v: v.create("settings/one", CONTENT),
        lambda v: v.rename("settings", "conf.d"),
    ],
    "settings, a transaction and a map made anew": [
        lambda v: v.create("postgresql.auto.conf.tmp", CONTENT),
        lambda v: v.rename("postgresql.auto.conf.tmp", "postgresql.auto.conf"),
        lambda v: v.create("base/16384/pg_filenode.map", CONTENT),
        lambda v: v.create("backup_label", CONTENT),
        lambda v: v.rename("backup_label", "backup_label.old"),
    ],
    "a new link": [lambda v: v.symlink("pg_tblspc/2", b"/srv/2")],
    "a link removed and made anew": [
        lambda v: v.unlink("pg_tblspc/1"),
        lambda v: v.symlink("pg_tblspc/1", b"/srv/2"),
    ],
    "a link renamed": [lambda v: v.rename("pg_tblspc/1", "pg_tblspc/3")],
    "signals": [
        lambda v: v.create("standby.signal"),
        lambda v: v.create("promote"),
        lambda v: v.unlink("promote"),
    ],
}


def change(volume: BoundVolume, name: str) -> None:
    for step in CHANGES[name]:
        step(volume)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], BoundVolume]]:
    """Makes a volume that rests, with a manifest; in the end what the crashes left open is closed."""
    count = 0

    def made() -> BoundVolume:
        nonlocal count
        count += 1
        volume = BoundVolume(tmp_path / str(count))
        volume.mkdirs("base/16384", "pg_wal", "pg_replslot/s", "pg_tblspc", "base/16400")
        for name in (TABLE, OTHER, FSM, WAL, "pg_replslot/s/state", "several"):
            volume.create(name, CONTENT)
        volume.create("empty")
        volume.link("several", "second")
        volume.symlink("pg_tblspc/1", b"/srv/1")
        volume.rest()
        volume.remount()
        return volume

    yield made
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if Path(f"/proc/self/fd/{name}").readlink().is_relative_to(tmp_path):
                os.close(int(name))


@pytest.mark.parametrize("name", CHANGES)
def test_no_crash_is_ever_taken_for_tampering(make: Callable[[], BoundVolume], name: str) -> None:
    whole = make()
    change(whole, name)
    count = len(whole.calls.made)
    whole.crash()
    assert whole.found().differences == {}
    for at in range(count):
        volume = make()
        volume.calls.crash_before = at
        with suppress(Crash):
            change(volume, name)
        volume.crash()
        assert volume.found().differences == {}, f"before call {at}"
        # and it can go on from there, crash again, and end cleanly
        volume.remount()
        with suppress(OSError):
            change(volume, name)
        volume.crash()
        assert volume.found().differences == {}, f"before call {at}, and a second crash"
        volume.remount()
        volume.rest()
        assert volume.found().is_sound
        volume.close()


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "a directory renamed"])
def test_after_a_crash_what_was_not_changed_is_bound_still(make: Callable[[], BoundVolume], name: str) -> None:
    volume = make()
    change(volume, name)
    volume.crash()
    os.truncate(volume.data / "pg_replslot/s/state" if "directory removed" not in name else volume.data / WAL, 0)
    assert len(volume.found().differences) == 1
    volume.close()


def test_a_link_that_is_made_anew_when_it_is_read_is_not_taken_for_another_one(
    make: Callable[[], BoundVolume],
) -> None:
    """A rename that a crash left half done ends when the link is next read, perhaps after a clean unmount."""
    whole = make()
    change(whole, "a link renamed")
    steps = [at for at, label in enumerate(whole.calls.made) if label == "relink:make"]
    assert len(steps) == 2
    whole.crash()
    volume = make()
    volume.calls.crash_before = steps[1]
    with suppress(Crash):
        change(volume, "a link renamed")
    volume.crash()
    volume.remount()
    volume.rest()
    for end in (volume.crash, volume.rest):
        volume.remount()
        before = (volume.data / "pg_tblspc/3").readlink()
        assert volume.namespace.readlink(volume.inode("pg_tblspc/3")) == b"/srv/1"
        assert ((volume.data / "pg_tblspc/3").readlink() != before) == (end == volume.crash)
        end()
        assert volume.found().is_sound


def test_writes_in_place_need_no_note(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    before = len(volume.calls.made)
    volume.write(TABLE, 0, b"y" * 8192)
    assert "journal:write" not in volume.calls.made[before:]
    volume.crash()
    os.truncate(volume.data / TABLE, 8192)
    assert list(volume.found().differences) == [TABLE.encode()]


def test_a_change_is_noted_once(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    for _ in range(3):
        volume.write(TABLE, volume.length(TABLE), CONTENT)
    assert volume.calls.made.count("journal:write") == 1


def test_new_files_are_not_noted(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    for number in range(17000, 17020):
        volume.create(f"base/16384/{number}", CONTENT)
        volume.write(f"base/16384/{number}", len(CONTENT), CONTENT)
    volume.unlink("base/16384/17000")
    assert "journal:write" not in volume.calls.made


def test_nothing_is_changed_that_could_not_be_noted(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    for label in ("journal:write", "journal:sync"):
        volume.calls.fail = {label: 5}
        for name in ("a file removed", "a file emptied", "a file renamed"):
            with pytest.raises(OSError, match="Input"):
                change(volume, name)
        volume.calls.fail = {}
    volume.crash()
    assert volume.found().is_sound
    assert (volume.data / TABLE).stat().st_size > 8192


def test_on_a_full_disk_everything_is_unbound_rather_than_kept(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    volume.calls.fail = {"journal:write": 28}
    volume.unlink(TABLE)
    volume.truncate(OTHER, 0)
    volume.crash()
    assert volume.found().differences == {}
    volume.remount()
    volume.rest()
    assert volume.found().is_complete, "the next manifest binds again"


def test_a_thousand_files_of_a_directory_are_removed_with_few_notes(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    for number in range(17000, 18000):
        volume.create(f"base/16400/{number}", b"x")
    volume.rest()
    volume.remount()
    names = [path.name for path in (volume.data / "base/16400").iterdir()]
    for name in names:
        volume.unlink(f"base/16400/{name}")
    assert volume.calls.made.count("journal:write") < 60
    volume.crash()
    assert volume.found().differences == {}


def test_a_few_removals_unbind_nothing_else(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    volume.unlink(OTHER)
    volume.unlink(WAL)
    assert volume.state.binds(TABLE.encode())


def test_the_journal_of_an_older_manifest_unbinds_nothing(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    volume.unlink(TABLE)
    volume.crash()
    old = (volume.volume.private / JOURNAL_FILE).read_bytes()
    volume.remount()
    volume.create(TABLE, CONTENT)
    volume.rest()
    (volume.volume.private / JOURNAL_FILE).write_bytes(old)
    (volume.data / TABLE).unlink()
    assert list(volume.found().differences) == [TABLE.encode()]


@pytest.mark.parametrize("how", ["forged", "cut", "removed", "a record from another place"])
def test_a_journal_that_is_not_as_it_was_written_only_binds_more(
    make: Callable[[], BoundVolume], how: str
) -> None:
    volume = make()
    volume.unlink(TABLE)
    volume.unlink(OTHER)
    volume.crash()
    path = volume.volume.private / JOURNAL_FILE
    data = bytearray(path.read_bytes())
    if how == "forged":
        data[4096 + 6] ^= 1
    elif how == "cut":
        data[4096 + 4 :] = b""
    elif how == "removed":
        data = bytearray()
    else:
        end = 4096 + 4 + int.from_bytes(data[4096:4100], "little") + 32
        data[4096:] = data[end:]
    path.write_bytes(data)
    assert TABLE.encode() in volume.found().differences


def test_a_wiped_header_of_a_bound_file_is_not_what_a_crash_leaves(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    volume.write(OTHER, len(CONTENT), CONTENT)
    volume.crash()
    for name in (TABLE, OTHER):
        with (volume.data / name).open("r+b") as file:
            file.write(bytes(8192))
    state = look(volume.binding)
    crashed = Believed(last=LastSession(Ending.UNCLEAN), had_header=lambda path: state.binds(os.fsencode(path)))
    assert empty_unfinished_files(volume.volume, crashed) == [OTHER]
    assert (volume.data / TABLE).stat().st_size > 8192


def test_modes_and_owners_are_not_bound(make: Callable[[], BoundVolume]) -> None:
    volume = make()
    (volume.data / TABLE).chmod(0o640)
    assert stat.S_IMODE((volume.data / TABLE).stat().st_mode) == 0o640
    assert volume.found().is_sound


def test_the_journal_of_another_volume_unbinds_nothing(make: Callable[[], BoundVolume]) -> None:
    """Two volumes of one keystore have one volume id and one key, and may have one counter."""
    volume = make()
    volume.unlink(TABLE)
    volume.crash()
    manifest = volume.state.manifest
    assert manifest is not None
    data = (volume.volume.private / JOURNAL_FILE).read_bytes()
    assert parse_journal(data, KEY, manifest).paths
    assert not parse_journal(data, KEY, replace(manifest, entry="vol_2")).begun


def test_a_journal_that_would_be_longer_than_anybody_reads_binds_nothing(
    make: Callable[[], BoundVolume], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_MAX_BYTES", journal.PREPARED_BYTES)
    volume = make()
    count = journal.PREPARED_BYTES // 200
    for number in range(count):
        volume.create("pg_twophase_" + "x" * 180 + f"{number}.conf")
    volume.unlink(TABLE)
    volume.crash()
    assert volume.found().differences == {}
    assert volume.found().changed.everything

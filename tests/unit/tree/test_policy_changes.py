"""No change of policy makes a file unreadable, of whatever kind, nor has what it encrypts written in clear."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from errno import EIO, ENOSPC, ENOTSUP
from pathlib import Path

import pytest

from tdefs.keys.keystore.entries import Statements
from tdefs.offline.describing import EMPTY, ENCRYPTED, PLAIN, describe
from tdefs.offline.reader import OfflineReader
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.policy.paths import Kind, classify
from tdefs.volume.believed import Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import Ending, LastSession
from tests.support.served_volume import RING, VOLUME_ID, Crash, ServedVolume

SECRET = b"4000 0000 0000 0002"
WAL = "pg_wal/000000010000000000000001"
#: One file of each kind, and the forks of a relation.
PATHS = [
    *("base/16384/16385", "base/16384/16385_fsm", "base/16384/16385_vm.1", "base/16384/16385_init", "global/1262"),
    *("base/16384/16385.x", "base/16384/pg_filenode.map", "base/16384/pg_internal.init", WAL, "pg_xact/0000"),
    *("global/pg_control", "base/pgsql_tmp/pgsql_tmp1.0", "base/16384/t3_16400", "pg_replslot/s/state"),
    *("pg_twophase/000002E3", "pg_stat/pgstat.stat", "postgresql.conf", "log/a.log", "postmaster.pid"),
    *("PG_VERSION", "backup_label", "standby.signal", "server.key"),
]
CLEANLY = LastSession()
LENGTHS = (0, 1, 8191, 8192, 8193, 30_000)
CONTENTS: dict[str, bytes] = {
    **{f"{length} zeros": bytes(length) for length in LENGTHS},
    **{f"{length} bytes": (SECRET * 2000)[:length] for length in LENGTHS[1:]},
    **{f"{length} zeros and a tail": bytes(length) + b"tail" for length in (1, 511, 512, 8191, 8192, 20_000)},
    "8192 zeros and a byte": bytes(8192) + b"x",
    "8192 zeros and pages that look random": bytes(8192) + os.urandom(16384),
}
POLICIES = {
    "all": "version: 1\n",
    "other key": "version: 1\ndefault: dk_2\n",
    "none": "version: 1\ndefault: plain\nkinds: {catalog: plain}\n"
    "databases: [{database: 0, key: plain}, {database: 16384, key: plain}]\n",
}
CHANGES = [("none", "all"), ("none", "other key"), ("all", "none"), ("all", "other key"), ("other key", "none")]


@pytest.fixture
def policies(tmp_path: Path) -> dict[str, Policy]:
    found = {}
    for name, text in POLICIES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        found[name] = load_policy(tmp_path / f"{name}.yaml")
    return found


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedVolume]:
    """A volume that has held plain files, with every directory. No test here cuts the power."""
    for sync in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, sync, lambda fd: None)
    (tmp_path / "data").mkdir()
    volume = ServedVolume(tmp_path / "data")
    volume.mkdirs(*{str(Path(path).parent) for path in PATHS if "/" in path})
    volume.plain_files = True
    yield volume
    volume.close()


def offline(served: ServedVolume) -> Volume:
    """A volume whose data is what is served."""
    return Volume(served.data.parent, VOLUME_ID, served.data / "keystore")


def believed(policy: Path, last: LastSession = CLEANLY) -> Believed:
    return Believed(Statements(True, policy_digest=load_policy(policy).digest(), policy=str(policy)), last)


def close_as_the_end_of_a_process_does(path: Path) -> None:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if Path(f"/proc/self/fd/{fd}").readlink() == path:
                os.close(fd)


def clear(served: ServedVolume, path: str) -> bool:
    return SECRET in served.stored(path)


def test_every_kind_of_file_is_tried() -> None:
    assert {classify(path).kind for path in PATHS} == set(Kind)


@pytest.mark.parametrize("change", CHANGES, ids=" to ".join)
def test_no_change_of_policy_makes_a_file_unreadable(
    served: ServedVolume, policies: dict[str, Policy], tmp_path: Path, change: tuple[str, str]
) -> None:
    before, after = change
    expected = {}
    for path in PATHS:
        for number, content in enumerate(CONTENTS.values()):
            # names of the same kind, in the same directory
            name = f"{path.removesuffix('.x')}.{number + 2}" if classify(path).relation else path
            served.remount(policy=policies[before])
            served.create(name, content)
            served.remount(policy=policies[after])
            volume, known = offline(served), believed(tmp_path / f"{after}.yaml")
            told = describe(volume, name, known)
            assert told is not None
            assert (told.size, told.error) == (len(content), None), (name, content[:1])
            assert told.state in ((PLAIN, EMPTY) if before == "none" else (ENCRYPTED,))
            with OfflineReader(volume, RING, known).open(name) as file:
                assert b"".join(file.chunks()) == content
            status = (served.data / name).stat()
            assert served.length(name) == len(content)
            assert served.read(name) == content
            assert (served.data / name).stat().st_mtime_ns == status.st_mtime_ns, "reading has written"
            served.write(name, len(content), SECRET)
            if after != "none" and not any(content):
                # what is all zero is decided about when it is opened to be written
                assert not clear(served, name), f"{name} is written in clear"
            served.write(name, 3, b"new")
            content = content + SECRET
            content = content[:3] + b"new" + content[6:]
            served.remount()
            assert served.read(name) == content
            expected[name] = content
            if not classify(path).relation:
                served.unlink(name)
    crashed = LastSession(Ending.UNCLEAN, plain_files=True)
    assert empty_unfinished_files(volume, believed(tmp_path / f"{after}.yaml", crashed)) == []
    served.remount(after_crash=True)
    for name, content in expected.items():
        if classify(name).relation:
            assert served.read(name) == content


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("tail", [b"", b"tail"])
def test_sixteen_megabytes_of_plain_zeros_stay_readable(
    served: ServedVolume, policies: dict[str, Policy], written: bool, tail: bytes
) -> None:
    length = 16 << 20
    served.remount(policy=policies["none"])
    served.create(WAL, bytes(length) if written else b"")
    inode = served.inode(WAL)
    file = served.opener.open(inode, writable=True)
    file.truncate(length)
    if tail:
        file.write(length - len(tail), tail)
    served.remount(policy=policies["all"])
    served.inode(WAL).looked_up()
    assert served.length(WAL) == length
    assert served.read(WAL) == bytes(length - len(tail)) + tail
    if not written:
        assert served.calls.made.count("form:zeros") <= 3, "holes are read"
    looked = served.calls.made.count("form:zeros")
    served.write(WAL, 8192, SECRET)
    assert served.calls.made.count("form:zeros") == looked, "it is read each time that the file is opened"
    assert clear(served, WAL) == bool(tail)
    served.remount()
    assert served.length(WAL) == length
    assert served.read(WAL)[8192:].startswith(SECRET)


@pytest.mark.parametrize(
    "content",
    [SECRET, bytes(20_000) + SECRET, os.urandom(16384)],
    ids=["a text", "zeros and a text", "what looks random"],
)
@pytest.mark.parametrize("wiped", [512, 8192])
def test_an_encrypted_file_whose_header_was_wiped_is_damage_beside_plain_files(
    served: ServedVolume, policies: dict[str, Policy], tmp_path: Path, content: bytes, wiped: int
) -> None:
    for path in PATHS:
        served.remount(policy=policies["all"])
        served.create(path, content)
        with (served.data / path).open("r+b") as file:
            file.write(bytes(wiped))
        served.remount()
        with pytest.raises(OSError, match="Input/output") as caught:
            served.read(path)
        assert caught.value.errno == EIO
        told = describe(offline(served), path, believed(tmp_path / "all.yaml"))
        assert told is not None
        assert told.error
        assert "wiped" in told.error


@pytest.mark.parametrize("length", [1, 300, 8192, 30_000])
def test_zeros_keep_their_length_whenever_their_encryption_stops(
    served: ServedVolume, policies: dict[str, Policy], length: int
) -> None:
    for stop in range(100):
        served.remount(policy=policies["none"])
        served.create(WAL, bytes(length))
        served.remount(policy=policies["all"])
        inode = served.inode(WAL)
        served.calls.made.clear()
        served.calls.crash_before = stop
        try:
            served.opener.open(inode, writable=True)
        except Crash:
            close_as_the_end_of_a_process_does(served.data / WAL)
            for name in ("none", "all"):
                served.remount(policy=policies[name])
                assert served.length(WAL) == length, f"after {stop} calls, mounted with the policy {name}"
                assert served.read(WAL) == bytes(length)
                served.remount(policy=policies[name])
            served.write(WAL, 0, SECRET)
            assert not clear(served, WAL)
            served.remount()
            assert served.read(WAL) == SECRET + bytes(max(0, length - len(SECRET)))
            served.unlink(WAL)
        else:
            break
    assert stop > 5


def test_a_reader_sees_zeros_also_while_the_file_is_encrypted(
    served: ServedVolume, policies: dict[str, Policy]
) -> None:
    served.remount(policy=policies["none"])
    served.create(WAL, bytes(20_000))
    served.remount(policy=policies["all"])
    inode = served.inode(WAL)
    reader = served.opener.open(inode, writable=False)
    before, changes = reader.content, reader.lock.changes
    assert not reader.writable, "what is written back to it is not encrypted"
    writer = served.opener.open(inode, writable=True)
    assert writer is reader
    assert reader.content is not before
    assert reader.lock.changes > changes, "a read that was under way does not know that the file was encrypted"
    writer.write(0, SECRET)
    assert not clear(served, WAL)
    assert served.read(WAL)[: len(SECRET)] == SECRET


@pytest.mark.parametrize("label", ["settle:mark", "create:size", "create:header", "create:sync"])
def test_zeros_that_could_not_be_encrypted_are_not_written_in_clear_later(
    served: ServedVolume, policies: dict[str, Policy], label: str
) -> None:
    served.remount(policy=policies["none"])
    served.create(WAL, bytes(20_000))
    served.remount(policy=policies["all"])
    inode = served.inode(WAL)
    inode.looked_up()
    reader = served.opener.open(inode, writable=False)
    served.calls.fail[label] = ENOSPC
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            served.opener.open(inode, writable=True)
        assert not reader.writable
    served.calls.fail.clear()
    assert served.length(WAL) == 20_000
    served.write(WAL, 0, SECRET)
    assert not clear(served, WAL)
    served.remount()
    assert served.read(WAL) == SECRET + bytes(20_000 - len(SECRET))


def test_a_mark_that_stays_on_an_encrypted_file_does_no_harm(
    served: ServedVolume, policies: dict[str, Policy]
) -> None:
    served.remount(policy=policies["none"])
    served.create(WAL, bytes(20_000))
    served.remount(policy=policies["all"])
    served.calls.fail["settle:unmark"] = ENOSPC
    served.write(WAL, 0, SECRET)
    served.remount(policy=policies["none"])
    assert served.read(WAL) == SECRET + bytes(20_000 - len(SECRET))
    assert not clear(served, WAL)


def test_zeros_renamed_or_linked_into_an_encrypted_place_are_encrypted_when_written(
    served: ServedVolume, policies: dict[str, Policy]
) -> None:
    mixed = replace(policies["all"], kinds={Kind.CONFIGURATION: policies["none"].default})
    for move in (served.rename, served.link):
        served.remount(policy=policies["none"])
        served.create("a.conf", bytes(10_000))
        served.remount(policy=policies["all"])
        move("a.conf", WAL)
        served.remount(policy=mixed)
        served.write(WAL, 0, SECRET)
        assert not clear(served, WAL)
        assert served.length(WAL) == 10_000
        served.unlink(WAL)


def test_without_extended_attributes_files_are_made_and_zeros_encrypted_all_the_same(
    served: ServedVolume, policies: dict[str, Policy]
) -> None:
    def without(policy: Policy) -> None:
        served.remount(policy=policy)
        served.calls.fail.update(
            dict.fromkeys(("create:mark", "settle:mark", "settle:unmark", "form:mark"), ENOTSUP)
        )

    without(policies["none"])
    served.create(WAL, bytes(20_000))
    without(policies["all"])
    served.write(WAL, 8, SECRET)
    assert not clear(served, WAL)
    assert served.length(WAL) == 20_000

"""The promises of keystore.transaction: whenever a change stops, the old or the new keystore is there whole.

What a kill before each call leaves is printed as a table by

    python -m pytest -q -s tests/unit/keys/test_keystore_saving.py -k kill_before_any_call
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError, from_os_error
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore import transaction
from tdefs.keys.keystore.changes import add_protector, change_protector
from tdefs.keys.keystore.file import Keystore, Unlocked, create_keystore, load_keystore
from tdefs.keys.keystore.history import read_history
from tdefs.keys.keystore.history_checking import check_history
from tdefs.keys.keystore.key_changes import rotate_data_key, rotate_master_key
from tdefs.keys.keystore.text import serialise
from tdefs.keys.keystore.transaction import KeystoreChange, repair
from tdefs.keys.keystore.wrapped_keys import open_history_key
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.private import OwnDirectory, UntrustedError
from tests.unit.keys.keystore_samples import CHEAP, VOLUME_ID, passphrase
from tests.unit.keys.stopped_calls import StoppedCalls, calls_of, kill_before, table

NEW_PASSPHRASE = b"a quite different sentence"
FILES = {"keystore", "keystore.lock", "keystore.history", "keystore.history.head"}
OTHER_PASSPHRASE = b"kept by somebody else"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A keystore that opens by two passphrases."""
    path = tmp_path / "keystore"
    create_keystore(path, VOLUME_ID, passphrase())
    with KeystoreChange(path, "test") as change:
        both, _ = add_protector(change.keystore.open(passphrase()), passphrase(OTHER_PASSPHRASE), "")
        change.save(both, [passphrase(OTHER_PASSPHRASE)])
    return path


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync costs nothing: a process that is killed takes nothing with it that it has written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def change_passphrase(path: Path) -> None:
    with KeystoreChange(path, "protector change") as change:
        new = passphrase(NEW_PASSPHRASE)
        change.save(change_protector(change.keystore.open(passphrase()), "pr_1", new), [new])


def rotate_master(path: Path) -> None:
    with KeystoreChange(path, "key rotate-master") as change:
        change.save(rotate_master_key(change.keystore.open(passphrase())), [passphrase()])


def rotate_data(path: Path) -> None:
    with KeystoreChange(path, "key rotate") as change:
        change.save(rotate_data_key(change.keystore.open(passphrase()), "dk_1"), [passphrase()])


def history_findings(path: Path) -> list[str]:
    """What is wrong with the history; a change that was stopped is nothing wrong."""
    unlocked = load_keystore(path).open(passphrase(OTHER_PASSPHRASE))
    document = unlocked.document
    assert document.history is not None
    key = open_history_key(VOLUME_ID, document.history, unlocked.master)
    return check_history(read_history(path), key, document.history, document.revision).findings


def opens(path: Path, protector: Protector) -> KeyRing | None:
    try:
        return load_keystore(path).unlock(protector)
    except TdefsError as error:
        assert error.exit_code == Exit.WRONG_SECRET
        return None


def passphrase_outcome(path: Path) -> str:
    old, new = opens(path, passphrase()), opens(path, passphrase(NEW_PASSPHRASE))
    assert (old is None) != (new is None)
    return "the new secret, not the old" if old is None else "the old secret, not the new"


def master_outcome(path: Path) -> str:
    assert opens(path, passphrase(OTHER_PASSPHRASE)) is not None
    return f"every secret opens {load_keystore(path).open(passphrase()).master.name}"


def data_outcome(path: Path) -> str:
    ring = opens(path, passphrase())
    assert ring is not None
    return f"every secret opens dk_1 up to round {len(list(ring))}"


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(
    ("work", "outcome"),
    [(change_passphrase, passphrase_outcome), (rotate_master, master_outcome), (rotate_data, data_outcome)],
    ids=["change a passphrase", "rotate the master key", "rotate a data key"],
)
def test_kill_before_any_call_leaves_the_old_or_the_new_keystore(
    path: Path,
    tmp_path: Path,
    work: Callable[[Path], None],
    outcome: Callable[[Path], str],
    request: pytest.FixtureRequest,
) -> None:
    original, history = path.read_bytes(), read_history(path)
    keys = load_keystore(path).unlock(passphrase())
    # as deep as the others, since each directory on the way is opened
    (tmp_path / "calls").mkdir()
    moved = _moved(path, tmp_path / "calls" / "keystore")
    calls = calls_of(lambda: work(moved))
    outcomes, repairs = [], []
    opened_by: dict[bytes, str] = {}  # what opens a keystore depends on its bytes alone
    changed_from: set[tuple[object, ...]] = set()
    for number in range(len(calls)):
        copy = tmp_path / f"{number}" / "keystore"
        copy.parent.mkdir()
        copy.write_bytes(original)
        copy.chmod(0o600)
        copy.with_name("keystore.history").write_bytes(history.lines)
        copy.with_name("keystore.history.head").write_bytes(history.head)
        kill_before(number, lambda copy=copy: work(copy))  # type: ignore[misc]
        stopped = copy.read_bytes()
        if stopped not in opened_by:
            opened_by[stopped] = outcome(copy)
        outcomes.append(opened_by[stopped])
        left = (copy.parent / "keystore.new").exists()
        repairs.append("; ".join(repair(copy)).replace(f"{copy.parent}/", ""))
        assert bool(repairs[-1]) == left
        assert {entry.name for entry in copy.parent.iterdir()} <= FILES
        assert copy.read_bytes() == stopped
        assert (outcomes[-1] == outcomes[0]) == (stopped == original)
        state = (stopped == original, *shape(copy))
        if state in changed_from:
            continue
        changed_from.add(state)
        # nothing is in the way of the next change, and no key was lost
        if outcomes[-1] == outcomes[0]:
            work(copy)
        assert outcome(copy) != outcomes[0]
        ring = load_keystore(copy).unlock(passphrase(OTHER_PASSPHRASE))
        assert ring.get("dk_1", 1) == keys.get("dk_1", 1)
        assert history_findings(copy) == []
    print(f"\n{request.node.callspec.id}\n\n{table(calls, outcomes, repairs)}")
    assert len(set(outcomes)) == 2
    swap = calls.index("rename")
    assert set(outcomes[: swap + 1]) == {outcomes[0]}
    assert set(outcomes[swap + 1 :]) == {outcomes[-1]}
    assert "fsync" in calls[:swap]
    assert "fsync" in calls[swap:]


def shape(keystore: Path) -> list[tuple[str, int, bytes]]:
    """Return which files there are, how long each is, and what the head counts: all but times."""
    return sorted(
        (entry.name, entry.stat().st_size, entry.read_bytes()[:20] if entry.suffix == ".head" else b"")
        for entry in keystore.parent.iterdir()
        if entry.name != keystore.name
    )


def _moved(path: Path, new: Path) -> Path:
    for name in FILES - {"keystore.lock"}:
        path.with_name(name).replace(new.with_name(name))
    return new


@pytest.mark.usefixtures("unsynced")
def test_error_of_any_call_leaves_the_old_or_the_new_keystore_and_nothing_else(path: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original, history = path.read_bytes(), read_history(path)
    (tmp_path / "calls").mkdir()
    moved = _moved(path, tmp_path / "calls" / "keystore")
    calls = calls_of(lambda: change_passphrase(moved))
    swap = calls.index("rename")
    named = set()
    for number in range(len(calls)):
        copy = tmp_path / f"{number}" / "keystore"
        copy.parent.mkdir()
        copy.write_bytes(original)
        copy.chmod(0o600)
        copy.with_name("keystore.history").write_bytes(history.lines)
        copy.with_name("keystore.history.head").write_bytes(history.head)
        with pytest.MonkeyPatch.context() as patch:
            StoppedCalls(patch, number, fail)
            try:
                change_passphrase(copy)
            except (OSError, TdefsError) as error:
                if number <= swap:
                    assert copy.read_bytes() == original
                if isinstance(error, OSError) and calls[number] in ("write", "pwrite"):
                    assert Path(error.filename).parent == copy.parent  # which file system is full
                    named.add(Path(error.filename).name)
                    assert from_os_error(error).hint == "make room there, and try again"
            else:
                # to resolve symbolic links, an error of stat(2) counts as no link
                assert calls[number] == "stat"
        assert passphrase_outcome(copy)
        assert {entry.name for entry in copy.parent.iterdir()} <= FILES
    assert named == {"keystore.lock", "keystore.history", "keystore.history.head", "keystore.new"}


def test_repair_says_what_it_found_and_did(path: Path) -> None:
    assert repair(path) == []
    new = path.with_name("keystore.new")
    new.write_bytes(path.read_bytes()[:100])
    (found,) = repair(path)
    assert "incomplete" in found
    assert "as it was before (revision 2)" in found
    assert not new.exists()
    path.with_name(".keystore.0123456789abcdef.tmp").touch()
    (found,) = repair(path)
    assert "stopped creation" in found
    assert repair(path) == []


def test_repair_puts_a_whole_new_keystore_in_the_place_of_one_that_is_lost(path: Path) -> None:
    whole = path.read_bytes()
    for ruin in (path.unlink, lambda: path.write_bytes(whole[:-1])):
        path.with_name("keystore.new").write_bytes(whole)
        path.with_name("keystore.new").chmod(0o600)
        ruin()
        (found,) = repair(path)
        assert "could not be read" in found
        assert path.read_bytes() == whole
    assert path.with_name("keystore.damaged").read_bytes() == whole[:-1]
    path.unlink()
    with pytest.raises(TdefsError) as caught:
        repair(path)
    assert caught.value.exit_code == Exit.KEYSTORE_MISSING


def test_second_change_is_refused_and_told_who_is_at_it(path: Path) -> None:
    with KeystoreChange(path, "protector add"), pytest.raises(TdefsError) as caught:
        KeystoreChange(path, "other").__enter__()
    assert caught.value.exit_code == Exit.KEYSTORE_BUSY
    assert f"process {os.getpid()} of user " in caught.value.detail
    assert caught.value.detail.endswith("protector add")
    with KeystoreChange(path, "other"):
        assert json.loads(path.with_name("keystore.lock").read_text())["command"] == "other"


def test_lock_ends_with_the_process_that_holds_it(path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tdefs.keys.keystore.transaction import KeystoreChange\n"
        "KeystoreChange(Path(sys.argv[1]), 'dies').__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    change_passphrase(path)


def test_new_keystore_that_cannot_be_read_back_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = path.read_bytes()
    read_back = transaction._read_back

    def of_a_bad_disk(directory: OwnDirectory, new: str) -> bytes:
        data = bytearray(read_back(directory, new))
        data[200] ^= 1
        return bytes(data)

    def of_another_keystore(directory: OwnDirectory, new: str) -> bytes:
        unlocked = Keystore(path, load_keystore(path).document).open(passphrase())
        return serialise(rotate_data_key(unlocked, "dk_1").document)

    for lie in (of_a_bad_disk, of_another_keystore, lambda directory, new: original):
        monkeypatch.setattr(transaction, "_read_back", lie)
        with pytest.raises(TdefsError):
            rotate_data(path)
        assert path.read_bytes() == original
        assert not path.with_name("keystore.new").exists()


def test_secret_that_does_not_open_the_new_keystore_keeps_the_old(path: Path) -> None:
    class Forgetful(PassphraseProtector):
        """As a key server that answers something else the next time."""

        def unwrap(self, entry: object, context: object) -> bytes:
            return bytes(32)

    original = path.read_bytes()
    forgetful = Forgetful(lambda: NEW_PASSPHRASE, cost=CHEAP)
    with KeystoreChange(path, "test") as change, pytest.raises(TdefsError):
        change.save(change_protector(change.keystore.open(passphrase()), "pr_1", forgetful), [forgetful])
    assert path.read_bytes() == original


def test_faulty_document_is_never_written(path: Path) -> None:
    """A protector without a way to the master key would lock people out at the next rotation."""
    original = path.read_bytes()
    with KeystoreChange(path, "test") as change, pytest.raises(TdefsError):
        unlocked: Unlocked = change.keystore.open(passphrase())
        broken = rotate_master_key(unlocked)
        change.save(Unlocked(broken.document, unlocked.master, "pr_1", unlocked.ring), [])
    assert path.read_bytes() == original


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_owner_and_mode_stay_when_root_changes_the_keystore(path: Path) -> None:
    os.chown(path, 4711, 4712)
    path.chmod(0o400)
    change_passphrase(path)
    for file in (path, path.with_name("keystore.lock"), path.with_name("keystore.history")):
        assert (file.stat().st_uid, file.stat().st_gid) == (4711, 4712)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_symbolic_link_to_the_keystore_is_refused(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(UntrustedError, match="symbolic link"):
        change_passphrase(link)
    assert path.read_bytes() == before


def test_missing_keystore_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(TdefsError) as caught:
        KeystoreChange(tmp_path / "none", "test").__enter__()
    assert caught.value.exit_code == Exit.KEYSTORE_MISSING
    assert list(tmp_path.iterdir()) == []

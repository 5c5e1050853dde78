"""What a daemon, which has no secret, believes of a policy that is accepted while the volume is mounted.

Covers tdefs/volume/accepted.py, and the change of a policy in tdefs/volume/session_record.py.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tdefs.cli.policy import command as policy_command
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import Statements
from tdefs.keys.keystore.file import load_keystore
from tdefs.keys.keystore.history import append, head_path, history_path
from tdefs.policy.parse import load_policy
from tdefs.volume.accepted import statements_now
from tdefs.volume.known import known_volumes
from tdefs.volume.session_record import SESSION_FILE, SEVERAL_POLICIES, Ending, SessionBook
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)
BEFORE = Statements()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nkinds: {log: plain}\n")
    return path


def now(small: SmallVolume, *, since: int = 1, newest: int = 1) -> Statements:
    return statements_now(
        small.volume, small.volume.keystore, small.history_key, BEFORE, since=since, newest=newest
    )


def accept(command: Command, small: SmallVolume, policy: Path) -> int:
    """Accepts it; returns the keystore's revision of that."""
    volume = small.volume.backing
    command.run(policy_command, "accept", "--volume", volume, "--policy", policy, "--yes", *UNLOCK)
    return load_keystore(small.volume.keystore).document.revision


def code_of(small: SmallVolume, *, newest: int = 1) -> Exit:
    with pytest.raises(TdefsError) as caught:
        now(small, newest=newest)
    return Exit(caught.value.exit_code)


def test_what_was_accepted_since_the_mount_is_believed(small: SmallVolume, command: Command, policy: Path) -> None:
    assert now(small) == BEFORE
    accept(command, small, policy)
    found = now(small)
    assert (found.policy_digest, found.policy) == (load_policy(policy).digest(), str(policy))
    assert found.plain_files
    policy.write_text("version: 1\n")
    accept(command, small, policy)
    found = now(small)
    assert found.policy_digest == ""
    assert found.plain_files, "what is in the clear already must stay readable"


def test_what_was_accepted_before_the_mount_is_what_the_keystore_said_then(
    small: SmallVolume, command: Command, policy: Path
) -> None:
    revision = accept(command, small, policy)
    assert now(small, since=revision, newest=revision) == BEFORE


def test_a_record_without_the_historys_key_proves_nothing(small: SmallVolume, policy: Path) -> None:
    what = {"volume": "vol_1", "policy": str(policy), "digest": load_policy(policy).digest(), "plain_files": "yes"}
    append(small.volume.keystore, "policy accept", {**what, "revision": 2}, None)
    assert now(small).policy_digest == ""


def test_an_acceptance_that_was_stopped_before_the_keystore_had_it_counts_for_nothing(
    small: SmallVolume, command: Command, policy: Path
) -> None:
    before = small.volume.keystore.read_bytes()
    accept(command, small, policy)
    small.volume.keystore.write_bytes(before)
    assert now(small).policy_digest == ""


def test_an_older_keystore_is_refused(small: SmallVolume) -> None:
    assert code_of(small, newest=9) == Exit.KEYSTORE_DAMAGED


@pytest.mark.parametrize("which", [history_path, head_path])
def test_a_history_that_was_altered_is_refused(
    small: SmallVolume, command: Command, policy: Path, which: object
) -> None:
    accept(command, small, policy)
    accept(command, small, policy)
    assert callable(which)
    path = which(small.volume.keystore)
    path.write_bytes(path.read_bytes().replace(b"e", b"a", 1).replace(b"0", b"1", 1))
    assert code_of(small) == Exit.HISTORY_BROKEN


def test_a_volume_that_the_keystore_does_not_know_gets_nothing(
    small: SmallVolume, command: Command, policy: Path, tmp_path: Path
) -> None:
    accept(command, small, policy)
    shutil.move(small.volume.private, tmp_path / "old")
    shutil.copytree(tmp_path / "old", small.volume.private)
    assert now(small) == BEFORE


def test_after_a_changed_policy_a_crash_finds_that_there_were_several(small: SmallVolume) -> None:
    keystore = small.volume.keystore
    known = known_volumes(keystore, load_keystore(keystore).document, small.history_key)
    book = SessionBook(small.volume, "vol_1", keystore, small.history_key, known)
    assert book.begin(os.getpid(), "/mnt", plain_files=False, policy="11") == ""
    record = small.volume.private / SESSION_FILE
    inode = record.stat().st_ino
    book.change_policy("11", plain_files=False)
    assert record.stat().st_ino == inode, "nothing has changed, so nothing is written"
    book.change_policy("22", plain_files=True)
    found = json.loads(record.read_bytes())
    assert (found["policy"], found["plain_files"], found["clean"]) == (SEVERAL_POLICIES, True, False)
    last = small.believed.last
    assert (last.ending, last.policy, last.plain_files) == (Ending.UNCLEAN, SEVERAL_POLICIES, True)
    book.change_policy("11", plain_files=False)
    assert json.loads(record.read_bytes())["plain_files"], "what is in the clear is so still"
    assert book.end() == ""
    assert small.believed.last.ending is Ending.CLEAN

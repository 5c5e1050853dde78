"""A mount uses the policy that somebody with a secret has accepted, or encrypts everything.

Covers tdefs/volume/policy_choice.py and tdefs/cli/policy/accept.py.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

WAL = "pg_wal/000000010000000000000001"
PLAIN_WAL = "version: 1\nkinds: {wal: plain}\n"
PLAIN_MORE = "version: 1\nkinds: {wal: plain, log: plain}\n"
SECRET = b"4000 0000 0000 0002"


@pytest.fixture
def plain(scratch: Workspace) -> Volume:
    """A volume whose policy leaves WAL in the clear, with such a file; not mounted."""
    volume = scratch.volume("plain")
    volume.init(policy=PLAIN_WAL)
    volume.mount()
    (volume.mountpoint / "pg_wal").mkdir()
    (volume.mountpoint / WAL).write_bytes(SECRET)
    volume.umount()
    assert is_clear(volume, WAL)
    return volume


def is_clear(volume: Volume, path: str) -> bool:
    return SECRET in (volume.data / path).read_bytes()


def refused(volume: Volume, *words: str | Path) -> str:
    """What is said by a mount that does not come to be, for the sake of the policy."""
    done = volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, *words, check=False)
    assert done.returncode == Exit.POLICY_NOT_ACCEPTED, done.stderr
    assert not volume.is_mounted
    assert "tdefs policy accept" in done.stderr
    return done.stderr


@pytest.mark.parametrize("where", ["in its place", "command line", "configuration"])
def test_a_policy_that_was_exchanged_is_not_used(plain: Volume, where: str) -> None:
    policy = plain.root / "policy.yaml"
    words: list[str | Path] = []
    if where != "in its place":
        policy = plain.root / "other.yaml"
        words = ["--policy", policy]
    policy.write_text(PLAIN_MORE)
    if where == "configuration":
        config = plain.root / "tdefs.yaml"
        config.write_text(f"version: 1\nvolumes:\n  {plain.backing}:\n    policy: {policy}\n")
        words = ["--config", config]
    said = refused(plain, *words)
    assert str(policy) in said
    assert str(plain.root / "policy.yaml") in said
    plain.accept(*words)
    plain.mount(*words)
    (plain.mountpoint / "server.log").write_bytes(SECRET)
    plain.umount()
    assert is_clear(plain, "server.log")


def test_a_policy_is_the_same_under_other_names_and_comments(plain: Volume) -> None:
    other = plain.root / "other.yaml"
    other.write_text(f"# a comment\n{PLAIN_WAL}")
    plain.mount("--policy", other)
    plain.umount()


def test_without_a_policy_everything_new_is_encrypted_and_what_is_plain_is_read(plain: Volume) -> None:
    (plain.root / "policy.yaml").write_text(PLAIN_MORE)
    refused(plain)
    plain.mount("--no-policy")
    assert (plain.mountpoint / WAL).read_bytes() == SECRET
    (plain.mountpoint / "pg_wal/000000010000000000000002").write_bytes(SECRET)
    plain.umount()
    assert not is_clear(plain, "pg_wal/000000010000000000000002")


def test_a_volume_is_made_without_the_policy_of_the_configuration(scratch: Workspace) -> None:
    volume = scratch.volume()
    config, policy = volume.root / "tdefs.yaml", volume.root / "policy.yaml"
    policy.write_text(PLAIN_WAL)
    config.write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    policy: {policy}\n")
    volume.init("--no-policy", "--config", config)
    refused(volume, "--config", config)
    volume.mount("--config", config, "--no-policy")
    volume.umount()


def test_a_policy_that_is_accepted_while_mounted_holds_from_the_next_mount_on(plain: Volume) -> None:
    plain.mount()
    (plain.root / "policy.yaml").write_text(PLAIN_MORE)
    done = plain.tdefs("policy", "accept", "--volume", plain.mountpoint, "--yes", *plain.unlock)
    assert "unmount it and mount it again to use this" in done.stdout
    (plain.mountpoint / "before.log").write_bytes(SECRET)
    plain.umount()
    plain.mount()
    (plain.mountpoint / "after.log").write_bytes(SECRET)
    plain.umount()
    assert not is_clear(plain, "before.log")
    assert is_clear(plain, "after.log")


@pytest.mark.parametrize(("answer", "code"), [("yes\n", Exit.OK), ("no\n", Exit.POLICY_NOT_ACCEPTED)])
def test_a_person_is_asked_whether_files_in_the_clear_are_meant(volume: Volume, answer: str, code: Exit) -> None:
    policy = volume.root / "policy.yaml"
    policy.write_text(PLAIN_WAL)
    near, far = pty.openpty()
    words = ["policy", "accept", "--volume", str(volume.backing), "--policy", str(policy), *volume.unlock]
    os.write(near, answer.encode())
    with subprocess.Popen([TDEFS, *words], stdin=far, stderr=subprocess.PIPE, text=True) as process:
        said = process.communicate(timeout=60)[1]
    for fd in (near, far):
        os.close(fd)
    assert process.returncode == code, said
    assert "files of the kind wal" in said
    assert 'Type "yes" to confirm' in said


def test_a_crash_before_plain_files_were_allowed_is_recovered_from_by_the_rules_of_then(volume: Volume) -> None:
    """Where plain files may lie, headers are durable at once; one that the session before lost is no damage."""
    volume.mount()
    (volume.mountpoint / "base").mkdir()
    (volume.mountpoint / "base/16384").write_bytes(SECRET * 1000)
    os.sync()
    volume.kill()
    stored = volume.data / "base/16384"
    stored.write_bytes(bytes(8192) + stored.read_bytes()[8192:])  # the header did not reach the disk
    volume.accept(policy="version: 1\ndefault: plain\n")
    volume.mount()
    assert (volume.mountpoint / "base/16384").read_bytes() == b""
    volume.umount()


def test_the_sessions_of_a_volume_stand_in_the_history(volume: Volume) -> None:
    for _ in range(2):
        volume.mount()
        volume.umount()
    volume.mount()
    volume.kill()
    volume.mount()
    volume.umount()
    listed = volume.tdefs("key", "history", "--volume", volume.backing, "--json", *volume.unlock)
    found = json.loads(listed.stdout)
    assert found["findings"] == []
    sessions = [
        (record["event"], record["what"]["session"])
        for record in found["records"]
        if record["event"] in ("mount", "unmount")
    ]
    assert sessions == [
        *(("mount", 1), ("unmount", 1), ("mount", 2), ("unmount", 2)),
        *(("mount", 3), ("mount", 4), ("unmount", 4)),
    ]

"""A running mount uses its policy anew: by the command and by SIGHUP, and never one that a mount would refuse.

Covers tdefs/daemon/policy_reload.py, tdefs/volume/accepted.py and tdefs/cli/policy/reload.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.processes import send, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

EVERYTHING = "version: 1\n"
PLAIN_CONF = "version: 1\nkinds: {configuration: plain}\n"
PLAIN_MORE = "version: 1\nkinds: {configuration: plain, log: plain}\n"
SECRET = b"4000 0000 0000 0002"


@pytest.fixture
def plain(scratch: Workspace) -> Volume:
    """A mounted volume whose policy leaves configuration files in the clear."""
    volume = scratch.volume("reloaded")
    volume.init(policy=PLAIN_CONF)
    volume.mount()
    return volume


def policy_of(volume: Volume) -> Path:
    return volume.root / "policy.yaml"


def reload(volume: Volume, *, code: int = Exit.OK) -> str:
    """What the command says, which ends with *code*."""
    done = volume.tdefs("policy", "reload", volume.mountpoint, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def write(volume: Volume, name: str) -> bool:
    """Makes a file; returns whether it is in the clear on the disk."""
    (volume.mountpoint / name).write_bytes(SECRET)
    fd = os.open(volume.mountpoint / name, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return SECRET in (volume.data / name).read_bytes()


def digest(volume: Volume) -> str:
    return str(volume.status()["policy_digest"])


def log_has(volume: Volume, text: str) -> bool:
    return text in volume.log.read_text()


def test_new_files_follow_the_policy_that_was_read_again_and_old_ones_stay(plain: Volume) -> None:
    assert write(plain, "old.conf")
    before = digest(plain)
    policy_of(plain).write_text(EVERYTHING)
    assert "new files follow the new policy" in reload(plain)
    assert digest(plain) != before
    assert not write(plain, "new.conf")
    assert (plain.mountpoint / "old.conf").read_bytes() == SECRET
    with (plain.mountpoint / "old.conf").open("ab") as file:
        file.write(b" more")
    assert (plain.data / "old.conf").read_bytes() == SECRET + b" more"
    assert "decides as before" in reload(plain)
    policy_of(plain).write_text(PLAIN_CONF)
    reload(plain)
    assert digest(plain) == before
    assert write(plain, "newest.conf")
    plain.umount()
    assert plain.complaints() == []


def test_a_file_that_is_open_goes_on(plain: Volume) -> None:
    with (plain.mountpoint / "open.conf").open("w+b", buffering=0) as file:
        file.write(SECRET)
        policy_of(plain).write_text(EVERYTHING)
        reload(plain)
        file.write(b" more")
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 100, 0) == SECRET + b" more"
    assert (plain.data / "open.conf").read_bytes() == SECRET + b" more"
    with pytest.raises(OSError, match="cross-device") as caught:
        os.link(plain.mountpoint / "open.conf", plain.mountpoint / "other.conf")
    assert caught.value.errno == errno.EXDEV


def test_sighup_reloads_in_the_background_and_a_bad_file_is_an_error_in_the_log(plain: Volume) -> None:
    policy_of(plain).write_text(EVERYTHING)
    (daemon,) = plain.daemons
    send(daemon, signal.SIGHUP)
    assert wait_until(lambda: log_has(plain, "new files follow another policy"), 20)
    assert not write(plain, "new.conf")
    policy_of(plain).write_text("version: 1\nkinds: {nonsense: plain}\n")
    before = digest(plain)
    send(daemon, signal.SIGHUP)
    assert wait_until(lambda: log_has(plain, "the policy was not reloaded, and the old one goes on"), 20)
    assert any(" ERROR " in line and "nonsense" in line for line in plain.complaints())
    assert plain.daemons == [daemon]
    assert digest(plain) == before
    assert not write(plain, "newer.conf")


@pytest.mark.parametrize(
    "text", ["version: 1\nkinds: {nonsense: plain}\n", "", None], ids=["bad", "empty", "gone"]
)
def test_a_bad_file_leaves_the_old_policy_in_use(plain: Volume, text: str | None) -> None:
    before = digest(plain)
    if text is None:
        policy_of(plain).unlink()
    else:
        policy_of(plain).write_text(text)
    assert str(policy_of(plain)) in reload(plain, code=Exit.POLICY_INVALID)
    assert digest(plain) == before
    assert write(plain, "new.conf")


def test_a_policy_that_leaves_more_in_the_clear_must_be_accepted(plain: Volume) -> None:
    policy_of(plain).write_text(PLAIN_MORE)
    assert "was not accepted" in reload(plain, code=Exit.POLICY_NOT_ACCEPTED)
    assert not write(plain, "server.log")
    plain.accept()
    reload(plain)
    assert write(plain, "other.log")
    # the one before is not the accepted one any more
    policy_of(plain).write_text(PLAIN_CONF)
    assert "was not accepted" in reload(plain, code=Exit.POLICY_NOT_ACCEPTED)
    assert write(plain, "newest.log")


def test_a_policy_with_a_key_that_the_keystore_has_not_is_refused(plain: Volume) -> None:
    policy_of(plain).write_text("version: 1\ndefault: {encrypt: unknown_key}\n")
    said = plain.tdefs("policy", "reload", plain.mountpoint, check=False)
    assert said.returncode in (Exit.POLICY_NOT_ACCEPTED, Exit.POLICY_INVALID, Exit.DATA_KEY_UNKNOWN)
    assert write(plain, "new.conf")


def test_a_first_policy_is_used_where_everything_was_encrypted(volume: Volume) -> None:
    """It is the one that the keystore has been told of meanwhile; before, no file of the volume could be plain."""
    volume.mount()
    assert not write(volume, "old.conf")
    assert "decides as before" in reload(volume)
    volume.accept(policy=PLAIN_CONF)
    reload(volume)
    assert volume.status()["policy"] == str(policy_of(volume))
    assert write(volume, "new.conf")
    assert (volume.mountpoint / "old.conf").read_bytes() == SECRET
    volume.kill()
    volume.mount()
    assert (volume.mountpoint / "new.conf").read_bytes() == SECRET
    assert (volume.mountpoint / "old.conf").read_bytes() == SECRET
    volume.umount()
    volume.tdefs("verify", volume.backing, *volume.unlock)


@pytest.mark.parametrize("crash", [False, True], ids=["unmounted", "crashed"])
def test_what_an_earlier_policy_left_in_the_clear_is_no_tampering(plain: Volume, crash: bool) -> None:
    assert write(plain, "old.conf")
    policy_of(plain).write_text(EVERYTHING)
    reload(plain)
    assert not write(plain, "new.conf")
    os.sync()
    if crash:
        plain.kill()
    else:
        plain.umount()
    plain.mount()
    for name in ("old.conf", "new.conf"):
        assert (plain.mountpoint / name).read_bytes() == SECRET
    assert plain.tampering() == {}
    plain.umount()
    plain.tdefs("verify", plain.backing, *plain.unlock)
    assert not [line for line in plain.complaints() if "not as the last unmount left it" in line]


def test_what_is_planted_in_the_clear_is_refused_as_before(plain: Volume) -> None:
    """The earlier policy excuses only files of a kind that it left in the clear."""
    plain.umount()
    plain.mount()
    policy_of(plain).write_text(EVERYTHING)
    reload(plain)
    (plain.data / "planted.log").write_bytes(SECRET)
    with pytest.raises(OSError, match="Input/output") as caught:
        (plain.mountpoint / "planted.log").read_bytes()
    assert caught.value.errno == errno.EIO


def test_it_may_lie_on_the_mount_itself(scratch: Workspace) -> None:
    """Nothing on the event loop waits for an answer through the mount."""
    volume = scratch.volume("inside")
    volume.init()
    volume.mount()
    inside = volume.mountpoint / "policy.yaml"
    inside.write_text(EVERYTHING)
    volume.umount()
    volume.mount("--no-policy")
    reload(volume)
    outside = volume.root / "link.yaml"
    outside.write_text(EVERYTHING)
    volume.umount()
    volume.mount("--policy", outside)
    outside.unlink()
    outside.symlink_to(inside)
    assert "decides as before" in reload(volume)
    volume.umount()


def test_a_volume_that_is_not_mounted_or_only_read_reloads_nothing(volume: Volume) -> None:
    done = volume.tdefs("policy", "reload", "--volume", volume.backing, check=False)
    assert done.returncode == Exit.NOT_MOUNTED
    volume.mount("-o", "ro")
    assert "read-only" in reload(volume, code=Exit.USAGE)
    volume.umount()


def test_in_the_foreground_sighup_still_ends_the_mount_and_the_command_reloads(plain: Volume) -> None:
    plain.umount()
    command: list[str | Path] = [TDEFS, "mount", "--foreground", plain.backing, plain.mountpoint, *plain.unlock]
    with plain.log.open("a") as log:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        assert wait_until(lambda: plain.is_mounted and os.path.ismount(plain.mountpoint), 20)
        assert wait_until(lambda: "daemon_answers" in plain.status(), 20)
        policy_of(plain).write_text(EVERYTHING)
        reload(plain)
        assert not write(plain, "new.conf")
        daemon.send_signal(signal.SIGHUP)
        assert daemon.wait(30) == 0
        assert not plain.is_mounted
    finally:
        daemon.kill()
        daemon.wait()


def test_the_session_record_says_that_there_were_several(plain: Volume) -> None:
    record = plain.backing / ".tdefs/session.json"
    assert json.loads(record.read_text())["policy"] == digest(plain)
    policy_of(plain).write_text(EVERYTHING)
    reload(plain)
    assert json.loads(record.read_text())["policy"] == "several"
    assert record.stat().st_size == 8192
    plain.umount()
    plain.mount()
    assert json.loads(record.read_text())["policy"] == digest(plain)


def test_where_the_record_cannot_be_written_the_old_policy_goes_on(plain: Volume) -> None:
    place = plain.backing / ".tdefs/session.json"
    place.rename(place.with_name("kept"))
    place.mkdir()
    (place / "file").touch()
    policy_of(plain).write_text(EVERYTHING)
    try:
        reload(plain, code=Exit.OS_ERROR)
        assert write(plain, "new.conf")
    finally:
        (place / "file").unlink()
        place.rmdir()
        place.with_name("kept").rename(place)
    reload(plain)
    assert not write(plain, "newer.conf")

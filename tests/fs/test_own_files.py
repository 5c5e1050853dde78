"""What lies in the place of a file of tdefs's own is refused: nothing waits, and no other file is touched.

Covers tdefs/private.py and tdefs/way.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tdefs.cli.main import main
from tdefs.errors import Exit, TdefsError
from tdefs.private import UntrustedError, own_directory, own_place, read_regular
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

#: Seconds after which a command waits for something.
LIMIT = 30
VICTIM = b"root's own, and no business of a daemon's\n"


def symbolic_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("made"))


def fifo(path: Path, _victim: Path) -> None:
    os.mkfifo(path, 0o600)


def a_socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        place = victim.with_name("s")
        place.unlink(missing_ok=True)
        bound.bind(str(place))
    place.rename(path)


def directory(path: Path, _victim: Path) -> None:
    path.mkdir()


def device(path: Path, _victim: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


def hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def foreign_owner(path: Path, victim: Path) -> None:
    shutil.copy(victim.with_name("kept"), path)
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o600)


def world_writable(path: Path, victim: Path) -> None:
    shutil.copy(victim.with_name("kept"), path)
    path.chmod(0o666)


PLANTS = [
    *(symbolic_link, dangling_link, fifo, a_socket, directory, device, hard_link, foreign_owner, world_writable),
]
NAMES = [
    *(".tdefs/volume.json", ".tdefs/session.json", ".tdefs/control", ".tdefs/keystore", ".tdefs/keystore.history"),
    *(".tdefs/keystore.history.head", ".tdefs/keystore.lock", ".tdefs/keystore.new", "log"),
]
#: What lies in the control socket's place is removed; a keystore, which has a MAC, may be the user's whose daemon
#: it is for.
TOLERANT = {*((".tdefs/control", plant) for plant in PLANTS), (".tdefs/keystore", foreign_owner)}


@pytest.fixture
def used(scratch: Workspace) -> Volume:
    """A volume with its keystore in ``.tdefs``, which was mounted once, whose keys were changed once."""
    volume = scratch.volume("own")
    volume.keystore = volume.backing / ".tdefs" / "keystore"
    volume.init()
    volume.mount()
    volume.umount()
    volume.tdefs("key", "rotate", "dk_1", "--volume", volume.backing, *volume.unlock)
    return volume


def commands(volume: Volume) -> list[list[str | Path]]:
    place: list[str | Path] = ["--volume", volume.backing]
    return [
        ["ls", volume.backing],
        ["verify", volume.backing, *volume.unlock],
        ["volume", "list", *place],
        ["key", "list", *place],
        ["key", "history", *place, *volume.unlock],
        ["key", "rotate", "dk_1", *place, *volume.unlock],
        ["init", volume.backing, *volume.unlock],
        ["mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", volume.root / "log"],
        ["status", volume.mountpoint],
        ["doctor", volume.mountpoint],
        ["umount", volume.mountpoint],
    ]


def run(words: list[str | Path]) -> tuple[int, str]:
    """The exit code of a command, and what it said. In a fork, which has all modules; a mount by itself."""
    with tempfile.TemporaryFile("w+") as output:
        if words[0] == "mount":
            command = [str(TDEFS), *map(str, words)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            child = process.pid
        else:
            child = os.fork()
            if child == 0:
                _be_command(words, output.fileno())
        code = _end_of(child)
        assert code is not None, f"tdefs {words[0]} waits for what was planted"
        output.seek(0)
        return code, output.read()


def _be_command(words: list[str | Path], output: int) -> NoReturn:
    code = int(Exit.UNEXPECTED)
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        code = main([str(word) for word in words])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end_of(child: int) -> int | None:
    """The exit code of a process; ``None`` if it does not end, whereupon it is killed."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def plant_at(volume: Volume, name: str, plant: Callable[[Path, Path], None]) -> tuple[Path, Path]:
    """Plants something; returns where, and the file that must stay as it is."""
    path = volume.root / "log" if name == "log" else volume.backing / name
    victim = volume.root / "victim"
    victim.write_bytes(VICTIM)
    victim.chmod(0o644)
    kept = volume.root / "kept"
    if path.is_file():
        shutil.copy(path, kept)
    else:
        kept.write_bytes(b"")
    path.unlink(missing_ok=True)
    plant(path, victim)
    return path, victim


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_what_lies_in_the_place_of_an_own_file_holds_up_nobody_and_is_not_followed(
    used: Volume, name: str, plant: Callable[[Path, Path], None]
) -> None:
    path, victim = plant_at(used, name, plant)
    codes = {}
    for words in commands(used):
        code, said = run(words)
        codes[" ".join(map(str, words[:2]))] = code
        assert "Traceback" not in said, said
        assert code != Exit.UNEXPECTED, said
        if code == Exit.FILE_UNTRUSTED:
            assert path.name in said
            assert "HINT:" in said
    assert not used.is_mounted
    assert victim.read_bytes() == VICTIM
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert victim.stat().st_uid == 0
    assert not victim.with_name("made").exists()
    if (name, plant) not in TOLERANT:
        # a keystore that others may change has had its own code
        assert {Exit.FILE_UNTRUSTED, Exit.KEYSTORE_EXPOSED} & set(codes.values()), codes


def test_a_fifo_in_the_place_of_an_own_file_does_not_hold_the_lock(used: Volume) -> None:
    plant_at(used, ".tdefs/session.json", fifo)
    for _ in range(2):
        code, said = run(["mount", used.backing, used.mountpoint, *used.unlock, "--log-file", used.log])
        assert code == Exit.FILE_UNTRUSTED, said
        assert "it is a FIFO" in said


@pytest.mark.parametrize("name", ["policy", "config"])
def test_a_fifo_in_the_place_of_a_policy_or_configuration_is_not_waited_for(used: Volume, name: str) -> None:
    place = used.root / name
    os.mkfifo(place)
    code, said = run(["mount", used.backing, used.mountpoint, *used.unlock, f"--{name}", place])
    assert code == (Exit.POLICY_INVALID if name == "policy" else Exit.CONFIG_INVALID), said
    assert "it is a FIFO" in said


# --- issue 11, A1 (b): what the cluster's user plants through a directory that this user could exchange


def test_a_root_daemon_uses_no_directory_of_another_users(used: Volume, scratch: Workspace) -> None:
    """The user renames ``.tdefs`` and makes an own one, in which ``log`` and ``session.json`` lead elsewhere."""
    account = scratch.account
    account.own(used.backing)
    victim = used.root / "victim"
    victim.write_bytes(VICTIM)
    private = used.backing / ".tdefs"

    def attack() -> None:
        private.rename(used.backing / "old")
        private.mkdir(mode=0o755)
        for name in ("log", "session.json", "control", "keystore.history", "manifest"):
            (private / name).symlink_to(victim)

    in_child(attack, uid=account.uid, gid=account.gid)
    for name in ("volume.json", "keystore"):
        shutil.copy(used.backing / "old" / name, private / name)
        account.own(private / name)
    place = (used.backing, used.mountpoint)
    for log in ("", "--log-file=" + str(private / "log")):
        code, said = run(["mount", *place, *used.unlock, *filter(None, [log])])
        assert code == Exit.FILE_UNTRUSTED, said
    assert not used.is_mounted
    assert victim.read_bytes() == VICTIM


def test_a_daemon_of_root_refuses_own_files_of_another_user(used: Volume, scratch: Workspace) -> None:
    scratch.account.own(used.backing / ".tdefs")
    code, said = run(["mount", used.backing, used.mountpoint, *used.unlock])
    assert code == Exit.FILE_UNTRUSTED, said
    assert f"belongs to the user {scratch.account.name}" in said


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
def test_a_directory_that_others_may_write_to_is_refused(used: Volume, mode: int) -> None:
    (used.backing / ".tdefs").chmod(mode)
    code, said = run(["mount", used.backing, used.mountpoint, *used.unlock])
    assert code == Exit.FILE_UNTRUSTED, said
    assert "chmod go-w" in said


# --- the log


def test_a_daemon_of_root_logs_outside_of_the_volume(used: Volume) -> None:
    log = Path("/var/log/tdefs") / _log_name(used)
    log.unlink(missing_ok=True)
    try:
        used.tdefs("mount", used.backing, used.mountpoint, *used.unlock)
        assert used.status()["log_file"] == str(log)
        assert "mounted" in log.read_text()
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        above = log.parent.stat()
        assert (above.st_uid, above.st_mode & 0o027) == (0, 0)
        assert not (used.backing / ".tdefs" / "log").exists()
        used.umount()
    finally:
        log.unlink(missing_ok=True)


def _log_name(volume: Volume) -> str:
    said = subprocess.run(
        ["systemd-escape", "--path", volume.backing], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"{said or str(volume.backing)[1:].replace('-', chr(92) + 'x2d').replace('/', '-')}.log"


@pytest.mark.parametrize("number", [1, 2])
def test_a_log_that_is_put_aside_follows_no_link(used: Volume, number: int) -> None:
    log = used.root / "long.log"
    log.write_bytes(b"x" * (11 << 20))
    log.chmod(0o600)
    victim = used.root / "victim"
    victim.write_bytes(VICTIM)
    log.with_name(f"long.log.{number}").symlink_to(victim)
    used.tdefs("mount", used.backing, used.mountpoint, *used.unlock, "--log-file", log)
    used.umount()
    assert "unmounted" in log.read_text()
    assert victim.read_bytes() == VICTIM
    assert log.with_name("long.log.1").stat().st_size == 11 << 20


# --- the lock


def test_nothing_that_is_removed_from_the_own_directory_lets_a_second_daemon_in(used: Volume) -> None:
    used.mount()
    other = used.root / "other"
    other.mkdir()
    for path in (used.backing / ".tdefs").iterdir():
        if path.name in ("lock", "session.json", "control"):
            path.unlink()
    code, said = run(["mount", used.backing, other, *used.unlock])
    assert code == Exit.VOLUME_IN_USE, said
    assert str(used.daemons[0]) in said or str(used.mountpoint) in said
    used.umount()


# --- the module itself


def test_a_directory_is_reached_by_links_of_an_administrator_only(tmp_path: Path, scratch: Workspace) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    with own_place(tmp_path / "link" / "file") as opened:
        assert opened.path == real
        assert opened.read("file", 100) == b"content"
    # the same link where another user could have made it
    (tmp_path / "users").mkdir()
    scratch.account.own(tmp_path / "users")
    (tmp_path / "users" / "link").symlink_to(real)
    with pytest.raises(UntrustedError, match="could exchange it"), own_place(tmp_path / "users" / "link" / "file"):
        pass
    with pytest.raises(UntrustedError, match="symbolic link"), own_directory(tmp_path / "link", last_link=False):
        pass


def test_in_another_users_directory_root_changes_this_users_files_alone(
    tmp_path: Path, scratch: Workspace
) -> None:
    """As for a daemon that is not root's, whose keys root changes."""
    account = scratch.account
    for name in ("theirs", "roots"):
        (tmp_path / name).write_bytes(b"content")
        (tmp_path / name).chmod(0o600)
    account.own(tmp_path / "theirs")
    account.own(tmp_path)
    with own_directory(tmp_path) as opened:
        assert opened.read("theirs", 100) == opened.read("roots", 100) == b"content"
        os.close(opened.open("theirs", os.O_RDWR))
        with pytest.raises(UntrustedError, match="belongs to user 0"):
            opened.open("roots", os.O_RDWR)
        os.close(opened.open("new", os.O_RDWR | os.O_CREAT))
        opened.write_durably("durable", b"content")
    assert {(tmp_path / name).stat().st_uid for name in ("new", "durable")} == {account.uid}


def test_in_a_sticky_directory_own_files_are_safe_and_others_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "own").write_bytes(b"content")
    (tmp_path / "planted").write_bytes(b"content")
    os.chown(tmp_path / "planted", NOBODY, NOBODY)
    with own_directory(tmp_path) as opened:
        assert opened.read("own", 100) == b"content"
        with pytest.raises(UntrustedError, match=f"belongs to user {NOBODY}"):
            opened.read("planted", 100)


def test_a_new_file_is_durable_without_ever_having_two_names(tmp_path: Path) -> None:
    with own_directory(tmp_path) as opened:
        opened.write_durably("file", b"content", replace=False)
        assert (tmp_path / "file").stat().st_nlink == 1
        with pytest.raises(FileExistsError):
            opened.write_durably("file", b"other", replace=False)
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(FileExistsError):
            opened.write_durably("link", b"other", replace=False)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_what_others_maintain_is_read_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 4) == b"cont"
    for name in ("fifo", "."):
        with pytest.raises(OSError, match=r"directory|FIFO"):
            read_regular(tmp_path / name, 4)


def test_an_error_names_the_whole_path(tmp_path: Path) -> None:
    with own_directory(tmp_path) as opened, pytest.raises(FileNotFoundError) as caught:
        opened.read("none", 4)
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as caught, own_directory(tmp_path / "a" / "b"):
        pass
    assert caught.value.filename == str(tmp_path / "a")
    assert not isinstance(caught.value, TdefsError)

"""Mounting and unmounting: what each failure says, what it leaves, and what the daemon keeps to itself."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.fs.twins import content
from tests.support.caches import drop_caches
from tests.support.children import needs_root
from tests.support.mounts import is_mounted, mounts_below
from tests.support.processes import is_alive, processes_in, send, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace


def fingerprint(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every file below a directory, tdefs's own too: attributes and a hash of the content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted((directory, *directory.rglob("*"))):
        status = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[str(path.relative_to(directory))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_nlink,
            digest,
        )
    return found


def mount(
    volume: Volume, *arguments: str | Path, unlock: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Tries to mount it."""
    unlock = volume.unlock if unlock is None else unlock
    return volume.tdefs(
        "mount", volume.backing, volume.mountpoint, *unlock, "--log-file", volume.log, *arguments, check=False
    )


def mount_command(volume: Volume) -> list[str]:
    paths = [str(volume.backing), str(volume.mountpoint)]
    return [str(TDEFS), "mount", *paths, *volume.unlock, "--log-file", str(volume.log)]


@contextmanager
def nothing_happens(volume: Volume, *, but: tuple[str, ...] = ()) -> Iterator[None]:
    """Checks that a failure leaves nothing mounted, nothing running and not one byte changed.

    :param but: paths that may change
    """
    before = fingerprint(volume.backing)
    yield
    assert mounts_below(volume.root) == []
    assert wait_until(lambda: processes_in(volume.root) == [], 5), "something still runs"
    after = fingerprint(volume.backing)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed - set(but) == set()


@pytest.fixture(scope="module")
def once_used(workspace: Workspace) -> Volume:
    volume = workspace.volume("used")
    volume.init()
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"content")
    volume.umount()
    return volume


@pytest.fixture
def used(once_used: Volume) -> Iterator[Volume]:
    """A volume that was in use before, so that it has files to change; its keys are put back afterwards."""
    saved = {path: path.read_bytes() for path in (once_used.key_file, once_used.keystore)}
    yield once_used
    if once_used.is_mounted:
        once_used.umount()
    for path, data in saved.items():
        path.touch()
        path.chmod(0o600)
        path.write_bytes(data)


# --- ready


def test_the_mount_serves_when_mount_returns(volume: Volume) -> None:
    for _ in range(2):
        volume.mount()
        (volume.mountpoint / "file").write_bytes(b"1")
        assert (volume.mountpoint / "file").read_bytes() == b"1"
        volume.umount()


def test_paths_with_any_characters_are_mounted_and_unmounted(scratch: Workspace, volume: Volume) -> None:
    odd = scratch.directory("odd") / "a, b\\c=d 'e\" \N{SNOWMAN}\\040"
    odd.mkdir()
    backing, point = odd / "back,ing\\", odd / "mount\tpoint\\"
    point.mkdir()
    volume.tdefs("init", backing, *volume.unlock, "--keystore", odd / "key,store")
    volume.tdefs("mount", backing, point, *volume.unlock)
    assert is_mounted(point)
    (point / "file").write_bytes(b"1")
    assert (backing / "data" / "file").exists()
    again = volume.tdefs("mount", backing, point, *volume.unlock, check=False)
    assert again.returncode == Exit.VOLUME_IN_USE
    volume.tdefs("umount", point)
    assert not is_mounted(point)


def test_relative_paths_and_symbolic_links_are_understood(volume: Volume) -> None:
    (volume.root / "link").symlink_to("mnt")
    (volume.root / "backing link").symlink_to("backing")
    for backing, point in (
        ("backing", "mnt"),
        ("./backing/", "mnt/."),
        ("backing link", "link"),
        ("backing", "link/"),
    ):
        keystore = os.path.relpath(volume.keystore, volume.root)
        for words in (["mount", backing, point, *volume.unlock, "--keystore", keystore], ["umount", point]):
            done = subprocess.run([TDEFS, *words], cwd=volume.root, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (words, done.stderr)
            assert volume.is_mounted == (words[0] == "mount")
            if volume.is_mounted:  # who changes keys finds the daemons by this
                assert volume.status()["keystore"] == str(volume.keystore)


# --- one writer


def test_a_second_mount_is_refused_and_says_who_has_the_volume(volume: Volume) -> None:
    volume.mount()
    (volume.root / "other").mkdir()
    for point in (volume.mountpoint, volume.root / "other"):
        done = volume.tdefs("mount", volume.backing, point, *volume.unlock, check=False)
        assert done.returncode == Exit.VOLUME_IN_USE
        assert str(volume.daemons[0]) in done.stderr
        assert str(volume.mountpoint) in done.stderr
    assert not is_mounted(volume.root / "other")
    (volume.mountpoint / "file").write_bytes(b"still served")
    volume.umount()
    volume.mount()


# --- ending


@contextmanager
def working_in(volume: Volume) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], cwd=volume.mountpoint) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_busy_mount_is_not_unmounted_and_says_by_whom(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"1")
    with working_in(volume) as process:
        done = volume.tdefs("umount", volume.mountpoint, check=False)
        assert done.returncode == Exit.MOUNT_BUSY
        assert f"sleep (process {process.pid})" in done.stderr
        assert "HINT" in done.stderr
        (volume.mountpoint / "file").write_bytes(b"it lives on")
    assert volume.is_mounted
    volume.umount()


WAYS_OF_USING = {
    "open file": "f = open(sys.argv[1])",
    "map": "f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
    "open directory": "f = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)",
}


def test_each_way_of_using_a_mount_is_found(volume: Volume) -> None:
    volume.mount()
    path = volume.mountpoint / "file"
    path.write_bytes(b"1" * 8192)
    for how, script in WAYS_OF_USING.items():
        text = f"import mmap, os, sys, time; {script}; print(flush=True); time.sleep(60)"
        command = ["python3", "-c", text, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as process:
            try:
                assert process.stdout
                process.stdout.readline()
                done = volume.tdefs("umount", volume.mountpoint, check=False)
                assert done.returncode == Exit.MOUNT_BUSY, how
                assert f"python3 (process {process.pid})" in done.stderr, how
            finally:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon_and_frees_the_volume(volume: Volume, number: signal.Signals) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"dirty")
    daemon = volume.daemons[0]
    send(daemon, number)
    assert wait_until(lambda: not is_alive(daemon), 15)
    assert not volume.is_mounted
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"dirty"


def test_sigterm_to_a_busy_daemon_takes_effect_once_the_mount_is_free(volume: Volume) -> None:
    volume.mount()
    daemon = volume.daemons[0]
    with (volume.mountpoint / "file").open("wb") as file:
        file.write(b"before")
        file.flush()
        send(daemon, signal.SIGTERM)
        assert wait_until(lambda: "in use" in volume.log.read_text(), 10)
        assert is_alive(daemon)
        file.write(b" and after")
        file.flush()
        os.fsync(file.fileno())
        (volume.mountpoint / "new").write_bytes(b"1")
    assert str(os.getpid()) in volume.log.read_text()
    assert wait_until(lambda: not is_alive(daemon), 15), "it does not end once the mount is free"
    assert not volume.is_mounted
    volume.mount()
    assert (volume.mountpoint / "file").read_bytes() == b"before and after"


def test_umount_of_what_is_not_mounted_has_its_own_error(volume: Volume) -> None:
    for point in (volume.mountpoint, volume.root / "missing", Path("/proc")):
        done = volume.tdefs("umount", point, check=False)
        assert done.returncode == Exit.NOT_MOUNTED
        assert "HINT" in done.stderr


def test_the_foreground_daemon_serves_until_it_gets_a_signal_and_logs_to_standard_error(volume: Volume) -> None:
    command = [str(TDEFS), "mount", "-f", str(volume.backing), str(volume.mountpoint), *volume.unlock]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert wait_until(lambda: volume.is_mounted, 15)
        (volume.mountpoint / "file").write_bytes(b"1")
        assert daemon.poll() is None
        daemon.terminate()
        _, errors = daemon.communicate(timeout=20)
    assert daemon.returncode == 0
    assert "mounted" in errors
    assert not volume.is_mounted


# --- failures


def check_failure(done: subprocess.CompletedProcess[str], code: Exit) -> None:
    """Checks exit code and manner of an error: one line in lower case, then perhaps DETAIL and HINT."""
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("tdefs: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_key_is_told_and_changes_nothing(used: Volume) -> None:
    used.key_file.write_text("ab" * 32)
    with nothing_happens(used):
        check_failure(mount(used), Exit.WRONG_SECRET)


def test_a_wrong_passphrase_is_told_and_changes_nothing(scratch: Workspace) -> None:
    volume = scratch.volume("passphrase")
    right, wrong = volume.root / "right", volume.root / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    unlock = ("--passphrase-file", right, "--scrypt-cost", "14")
    volume.tdefs("init", volume.backing, *unlock, "--keystore", volume.keystore)
    with nothing_happens(volume):
        check_failure(mount(volume, unlock=["--passphrase-file", str(wrong)]), Exit.WRONG_SECRET)
        check_failure(mount(volume, unlock=["--passphrase-file", str(volume.root / "no")]), Exit.NO_SECRET)
    done = mount(volume, unlock=["--passphrase-file", str(right)])
    assert done.returncode == 0
    assert volume.is_mounted


def test_a_failing_key_command_is_told_and_changes_nothing(used: Volume) -> None:
    with nothing_happens(used):
        for command in ("false", "echo no key", "/no/such/program", "printf %%064d 1; exit 3"):
            check_failure(mount(used, unlock=["--key-command", command]), Exit.KEY_COMMAND_FAILED)


def test_a_missing_keystore_is_told_and_changes_nothing(used: Volume) -> None:
    used.keystore.unlink()
    with nothing_happens(used):
        done = mount(used)
        check_failure(done, Exit.KEYSTORE_MISSING)
        assert str(used.keystore) in done.stderr


@pytest.mark.parametrize("damage", ["a flipped bit", "half of it", "nothing left", "zeros"])
def test_a_damaged_keystore_is_told_and_changes_nothing(used: Volume, damage: str) -> None:
    data = bytearray(used.keystore.read_bytes())
    match damage:
        case "a flipped bit":
            data[len(data) // 2] ^= 1
        case "half of it":
            del data[len(data) // 2 :]
        case "nothing left":
            data.clear()
        case _:
            data = bytearray(len(data))
    used.keystore.write_bytes(data)
    with nothing_happens(used):
        check_failure(mount(used), Exit.KEYSTORE_DAMAGED)


def test_the_keystore_of_another_volume_is_told_and_changes_nothing(scratch: Workspace, used: Volume) -> None:
    other = scratch.volume("other")
    other.init()
    with nothing_happens(used):
        check_failure(mount(used, "--keystore", other.keystore, unlock=other.unlock), Exit.KEYSTORE_FOREIGN)
        check_failure(mount(used, "--keystore", other.keystore), Exit.KEYSTORE_FOREIGN)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602])
def test_a_keystore_that_others_can_read_is_told_and_changes_nothing(used: Volume, mode: int) -> None:
    used.keystore.chmod(mode)
    with nothing_happens(used):
        check_failure(mount(used), Exit.KEYSTORE_EXPOSED)


def test_a_directory_that_is_no_volume_is_told(volume: Volume) -> None:
    for backing in (volume.root / "missing", volume.mountpoint, volume.keystore):
        done = volume.tdefs("mount", backing, volume.mountpoint, *volume.unlock, check=False)
        check_failure(done, Exit.NOT_A_VOLUME)
    shutil.rmtree(volume.backing / ".tdefs")
    check_failure(mount(volume), Exit.NOT_A_VOLUME)


def test_a_damaged_description_of_the_volume_is_told(volume: Volume) -> None:
    for text in ("", "[]", "nonsense", '{"format_version": 99}', '{"format_version": 1}'):
        (volume.backing / ".tdefs" / "volume.json").write_text(text)
        check_failure(mount(volume), Exit.VOLUME_DAMAGED)
    assert not volume.is_mounted


@pytest.mark.parametrize("place", ["backing", "backing/below", "", "missing", "key", "missing/mnt"])
def test_unfit_mount_points_are_told_and_change_nothing(used: Volume, place: str) -> None:
    if place == "backing/below":
        (used.data / "below").mkdir(exist_ok=True)
    with nothing_happens(used):
        done = used.tdefs("mount", used.backing, used.root / place, *used.unlock, check=False)
        check_failure(done, Exit.MOUNTPOINT_INVALID)


@pytest.mark.parametrize("option", ["nonsense", "max_read=many"])
def test_a_bad_option_is_told_and_changes_nothing(used: Volume, option: str) -> None:
    session = used.backing / ".tdefs" / "session.json"
    before = json.loads(session.read_text())
    # the note of who mounts the volume has to be there before it is mounted
    with nothing_happens(used, but=(".tdefs", ".tdefs/session.json")):
        done = mount(used, "-o", option)
        assert done.returncode == Exit.MOUNT_FAILED
        assert option.partition("=")[0] in done.stderr
        assert "Traceback" not in done.stderr
    assert json.loads(session.read_text())["clean"] == before["clean"]


def test_good_options_hold(used: Volume) -> None:
    used.mount("-o", "ro,noatime", "-o", "noexec")
    line = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(used.mountpoint) in line
    )
    assert {"ro", "noatime", "noexec"} <= set(line.split()[5].split(","))
    with pytest.raises(OSError, match="Read-only"):
        (used.mountpoint / "new").touch()
    assert (used.mountpoint / "file").read_bytes() == b"content"


def test_a_bad_policy_is_told_and_changes_nothing(used: Volume) -> None:
    policy = used.root / "bad.yaml"
    for text, code in (
        ("version: 9\n", Exit.POLICY_INVALID),
        ("version: 1\ndefault: dk_9\n", Exit.POLICY_NOT_ACCEPTED),
    ):
        policy.write_text(text)
        with nothing_happens(used):
            check_failure(mount(used, "--policy", policy), code)


def test_a_log_file_that_cannot_be_written_is_told_and_changes_nothing(used: Volume) -> None:
    with nothing_happens(used):
        done = used.tdefs(
            "mount",
            used.backing,
            used.mountpoint,
            *used.unlock,
            "--log-file",
            used.root / "no" / "log",
            check=False,
        )
        assert done.returncode not in (0, Exit.UNEXPECTED), done.stderr
        assert str(used.root / "no") in done.stderr


# --- what the daemon keeps to itself


def test_the_daemon_leaves_no_core_and_cannot_be_looked_into(volume: Volume) -> None:
    volume.mount()
    process = Path("/proc", str(volume.daemons[0]))
    core = next(line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core file"))
    assert core.split()[4:6] == ["0", "0"]
    # proc(5): the files of a process that is not dumpable belong to root, whoever it runs as, and a process of
    # root's that is dumpable has a readable auxiliary vector for its own user only through this flag
    assert (process / "status").stat().st_uid == 0
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert status["CoreDumping"].strip() == "0"
    if os.geteuid() == 0:
        assert int(status["VmLck"].split()[0]) > 0


def test_no_secret_is_in_arguments_environment_or_log(scratch: Workspace) -> None:
    volume = scratch.volume("secrets")
    passphrase = "a passphrase that nobody has ever used"
    (volume.root / "passphrase").write_text(passphrase)
    unlock = ["--passphrase-file", str(volume.root / "passphrase")]
    volume.tdefs("init", volume.backing, *unlock, "--scrypt-cost", "14", "--keystore", volume.keystore)
    assert mount(volume, unlock=unlock).returncode == 0
    process = Path("/proc", str(volume.daemons[0]))
    (volume.mountpoint / "file").write_bytes(b"1")
    for place in (process / "cmdline", process / "environ", volume.log, *(volume.backing / ".tdefs").rglob("*")):
        if stat.S_ISREG(place.stat().st_mode):
            assert passphrase.encode() not in place.read_bytes(), place
    volume.umount()
    assert passphrase not in volume.log.read_text()


def test_a_key_from_a_command_is_in_no_argument_and_no_log(volume: Volume) -> None:
    volume.mount()
    key = volume.key_file.read_text().strip()
    process = Path("/proc", str(volume.daemons[0]))

    for place in (process / "cmdline", process / "environ", volume.log):
        data = place.read_bytes()
        assert key.encode() not in data
        assert bytes.fromhex(key) not in data


def test_the_daemon_holds_no_descriptor_of_who_started_it(volume: Volume) -> None:
    """Else a lock, a pipe or a deleted file of the caller's would live as long as the mount."""
    reading, writing = os.pipe()
    with (volume.root / "open file").open("w") as file:
        command = mount_command(volume)
        subprocess.run(command, pass_fds=(writing, file.fileno()), check=True, stdin=subprocess.DEVNULL)
    os.close(writing)
    (daemon,) = volume.daemons
    held = {}
    for entry in Path(f"/proc/{daemon}/fd").iterdir():
        held[entry.name] = os.readlink(entry)  # noqa: PTH115 - a pipe's link leads nowhere
    assert str(volume.root / "open file") not in held.values(), held
    assert {held[standard] for standard in "012"} == {"/dev/null"}
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b"", "the pipe's writing end is still open"
    os.close(reading)


def test_mount_returns_at_once_to_a_reader_of_its_output(volume: Volume) -> None:
    """As in ``x=$(tdefs mount ...)``, and under ssh and init scripts that read until the end."""
    command = mount_command(volume)
    started = time.monotonic()
    subprocess.run(command, capture_output=True, timeout=20, check=True)
    assert time.monotonic() - started < 15


def test_the_daemon_is_a_session_of_its_own_in_no_directory_and_no_zombie(volume: Volume) -> None:
    volume.mount()
    (daemon,) = volume.daemons
    assert os.getsid(daemon) == daemon
    assert str(Path(f"/proc/{daemon}/cwd").readlink()) == "/"
    assert is_alive(daemon)
    zombies = [
        line.split()[0]
        for line in subprocess.run(
            ["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        if line.split()[2].startswith("Z") and line.split()[1] == str(daemon)
    ]
    assert zombies == []


def test_the_logs_files_are_the_owners_alone_also_after_a_rotation(volume: Volume) -> None:
    log = volume.root / "rotated.log"
    log.write_bytes(b"x" * (11 << 20))
    log.chmod(0o600)
    volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, "--log-file", log)
    files = [path for path in volume.root.iterdir() if path.name.startswith("rotated")]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_tdefs_own_files_are_the_owners_alone(volume: Volume) -> None:
    volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock)
    private = volume.backing / ".tdefs"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {
        path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private.iterdir() if path.is_file()
    } == {path.name: 0 for path in private.iterdir() if path.is_file()}
    assert stat.S_IMODE(volume.keystore.stat().st_mode) == 0o600


def test_the_daemon_raises_its_limit_of_open_files(volume: Volume) -> None:
    """Each file that PostgreSQL has open needs a descriptor in the daemon."""
    command = mount_command(volume)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    subprocess.run(["bash", "-c", 'ulimit -Sn 64 && exec "$@"', "-", *command], check=True)
    opened = [(volume.mountpoint / str(number)).open("wb") for number in range(200)]
    for file in opened:
        file.close()
    assert volume.complaints() == []
    assert hard >= 200


def test_what_the_kernel_forgets_the_daemon_lets_go(volume: Volume) -> None:
    """No descriptor and no memory is kept for files that were used and are gone."""
    volume.mount()
    (daemon,) = volume.daemons

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon}/fd"))

    before = descriptors()
    for turn in range(3):
        directory = volume.mountpoint / f"directory{turn}"
        directory.mkdir()
        for number in range(150):
            (directory / str(number)).write_bytes(b"1")
            (directory / str(number)).rename(directory / f"{number}.renamed")
        for path in directory.iterdir():
            path.read_bytes()
            path.unlink()
        directory.rmdir()
    assert content(volume.mountpoint) == {}
    assert wait_until(lambda: descriptors() <= before + 2, 5), descriptors()


@needs_root
def test_open_files_survive_that_the_kernel_drops_all_it_may(volume: Volume) -> None:
    volume.mount()
    directory = volume.mountpoint / "a" / "b"
    directory.mkdir(parents=True)
    (volume.mountpoint / "c").mkdir()
    path, link = directory / "file", volume.mountpoint / "c" / "link"
    path.write_bytes(b"1" * 10_000)
    link.hardlink_to(path)
    holder = os.open(link, os.O_PATH)
    try:
        write_back_and_forget()
        directory.rename(volume.mountpoint / "moved")
        # the inode is known by a name that has moved meanwhile, unknown to who holds it
        Path(f"/proc/self/fd/{holder}").chmod(0o640)
        assert link.read_bytes() == (volume.mountpoint / "moved" / "file").read_bytes() == b"1" * 10_000
        link.unlink()
        write_back_and_forget()
        assert os.fstat(holder).st_nlink == 1
    finally:
        os.close(holder)


def write_back_and_forget() -> None:
    os.sync()
    drop_caches(2)


def test_a_mount_point_may_stand_in_the_configuration(volume: Volume) -> None:
    config = volume.root / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {volume.backing}:\n    mountpoint: {volume.mountpoint}\n")
    config.chmod(0o600)
    volume.tdefs("mount", volume.backing, "--config", config, *volume.unlock, "--log-file", volume.log)
    assert volume.is_mounted
    volume.umount()
    config.write_text("version: 1\n")
    done = volume.tdefs("mount", volume.backing, "--config", config, *volume.unlock, check=False)
    assert done.returncode == Exit.USAGE
    assert "neither the command line nor the configuration names one" in done.stderr

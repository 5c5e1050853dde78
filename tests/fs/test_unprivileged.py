"""A daemon of the cluster's own user: what root's can do by its rights, it must do by its wits."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tdefs.errors import Exit
from tests.fs.twins import Twins, content, identity
from tests.support.account import Account
from tests.support.children import in_child, needs_root
from tests.support.mounts import CONNECTIONS, LET_GO_OF_OTHERS, fusectl, is_mounted
from tests.support.processes import is_alive, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

CONTROL_FILE = Path(__file__).parents[1] / "unit" / "pg" / "data" / "pg15_checksums.pg_control"
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class Cluster:
    """A volume of the server's user, and a mount namespace where this user may open /dev/fuse.

    A machine with udev has a /dev/fuse that everybody may open; a container of root's often has not.
    """

    def __init__(self, space: Workspace) -> None:
        self.account = space.account
        self.volume: Volume = space.volume("unprivileged")
        self.device = self.volume.root / "fuse"
        self.keystore = self.volume.root / "keystore"
        #: What the mount has said, to the action that runs on it.
        self.said = ""
        if not self.account.is_caller:
            os.mknod(self.device, 0o020666, Path("/dev/fuse").stat().st_rdev)
            self.device.chmod(0o666)
        for path in (self.volume.root, *self.volume.root.iterdir()):
            self.account.own(path)

    def run(self, action: Callable[[], T], *options: str, prepare: Callable[[], None] = lambda: None) -> T:
        """Mounts with the options and runs it, as the user, in a child and a namespace that go away with it.

        :param prepare: what is done in the namespace before, as root
        """

        def inside() -> T:
            if not self.account.is_caller:
                assert _libc.unshare(_CLONE_NEWNS) == 0
                assert _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
                subprocess.run(["sh", "-c", LET_GO_OF_OTHERS, "sh", self.volume.root], check=True)
                subprocess.run(["mount", "--bind", self.device, "/dev/fuse"], check=True)
                prepare()
                os.setgroups([self.account.gid])
                os.setresgid(self.account.gid, self.account.gid, self.account.gid)
                os.setresuid(self.account.uid, self.account.uid, self.account.uid)
            self.said = self.tdefs("mount", self.volume.backing, self.volume.mountpoint, *options)
            try:
                return action()
            finally:
                self.tdefs("umount", self.volume.mountpoint)

        return in_child(inside)

    def init(self) -> None:
        in_child(lambda: self.tdefs("init", self.volume.backing), uid=self._uid, gid=self.account.gid)

    @property
    def _uid(self) -> int | None:
        return None if self.account.is_caller else self.account.uid

    def tdefs(self, command: str, *words: str | Path, code: int = 0) -> str:
        arguments = [str(TDEFS), command, *map(str, words)]
        if command != "umount":
            arguments += [*self.volume.unlock, "--keystore", str(self.keystore)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd="/", timeout=60)
        assert done.returncode == code, done.stderr
        return done.stderr


@pytest.fixture
def cluster(scratch: Workspace) -> Iterator[Cluster]:
    made = Cluster(scratch)
    made.init()
    yield made


def test_files_of_every_mode_are_what_they_are_on_plain_disk_also_after_a_remount(
    scratch: Workspace, cluster: Cluster
) -> None:
    plain = scratch.directory("plain")
    cluster.account.own(plain)
    twins = Twins(plain, cluster.volume.mountpoint)
    modes = (0o600, 0o400, 0o200, 0, 0o444, 0o755)

    def make(directory: Path) -> object:
        for mode in modes:
            with (directory / f"{mode:o}").open("wb") as file:
                file.write(b"%o" % mode * 5000)
            (directory / f"{mode:o}").chmod(mode)
        (directory / "closed").mkdir(mode=0)
        (directory / "link").symlink_to("600")
        os.mkfifo(directory / "fifo")
        return look(directory)

    def look(directory: Path) -> object:
        return {path.name: identity(path.lstat()) for path in sorted(directory.iterdir())}

    def use(directory: Path) -> object:
        """Writing needs no right to read, though a part of a page cannot be written without reading it."""
        seen: list[object] = [look(directory)]
        fd = os.open(directory / "200", os.O_WRONLY)
        os.pwrite(fd, b"inside", 8190)
        os.fsync(fd)
        os.close(fd)
        for mode in modes:
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                try:
                    os.close(os.open(directory / f"{mode:o}", flags))
                    seen.append("opened")
                except OSError as error:
                    seen.append(error.errno)
        for mode in modes:
            path = directory / f"{mode:o}"
            os.utime(path, ns=(1, 2))
            path.rename(directory / "renamed")
            (directory / "renamed").chmod(0o600)
            seen.append((directory / "renamed").read_bytes())
            (directory / "renamed").unlink()
        return seen

    in_user = cluster.account
    expected = [_as(in_user, lambda: make(plain)), _as(in_user, lambda: use(plain))]
    assert cluster.run(lambda: make(twins.mount)) == expected[0]
    assert cluster.run(lambda: use(twins.mount)) == expected[1]


def _as(account: Account, action: Callable[[], object]) -> object:
    return in_child(action, uid=None if account.is_caller else account.uid, gid=account.gid)


def test_a_cluster_user_mounts_works_and_unmounts(scratch: Workspace, cluster: Cluster) -> None:
    root = cluster.volume.mountpoint

    def work() -> tuple[dict[str, tuple[str, bytes]], int, int]:
        (root / "base" / "5").mkdir(parents=True)
        (root / "base" / "5" / "16385").write_bytes(b"content" * 5000)
        (root / "base" / "5" / "16385").rename(root / "base" / "5" / "16386")
        return content(root), stat.S_IMODE((root / "base").stat().st_mode), (root / "base").stat().st_uid

    seen = cluster.run(work)
    assert seen == (
        {
            "base": ("directory", b""),
            "base/5": ("directory", b""),
            "base/5/16386": ("file", b"content" * 5000),
        },
        0o755,
        cluster.account.uid,
    )
    assert cluster.run(lambda: content(root)) == seen[0]


def test_the_virtual_status_and_a_reload_of_the_policy_are_there_for_the_user(cluster: Cluster) -> None:
    point = cluster.volume.mountpoint

    def act() -> tuple[object, ...]:
        found = json.loads((point / ".tdefs/status.json").read_text())
        command: list[str | Path] = [TDEFS, "policy", "reload", point]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=60)
        return found["daemon_answers"], os.listdir(point), done.returncode, done.stdout, done.stderr

    assert cluster.run(act) == (True, [], 0, "the policy decides as before\n", "")


def test_a_busy_mount_says_by_whom_to_a_user_too(cluster: Cluster) -> None:
    def work() -> tuple[str, int]:
        with subprocess.Popen(["sleep", "60"], cwd=cluster.volume.mountpoint) as process:
            try:
                return cluster.tdefs("umount", cluster.volume.mountpoint, code=Exit.MOUNT_BUSY), process.pid
            finally:
                process.kill()

    said, pid = cluster.run(work)
    assert f"sleep (process {pid})" in said


def test_a_frozen_daemon_of_a_user_is_ended_by_its_watchdog(cluster: Cluster) -> None:
    root = cluster.volume.mountpoint

    def freeze() -> tuple[int | None, float]:
        (daemon,) = cluster.volume.daemons
        os.kill(daemon, signal.SIGSTOP)
        begun = time.monotonic()
        try:
            (root / "new").touch()
        except OSError as error:
            return error.errno, time.monotonic() - begun
        finally:
            wait_until(lambda: not is_alive(daemon), 10)
        return None, 0

    with fusectl():
        code, seconds = cluster.run(freeze, "--watchdog", "1")
    assert code in (errno.ECONNABORTED, errno.ENOTCONN)
    assert seconds < 10


@needs_root
def test_a_watchdog_that_cannot_work_is_told_at_the_mount(cluster: Cluster) -> None:
    def without_fusectl() -> None:
        while is_mounted(CONNECTIONS):
            subprocess.run(["umount", CONNECTIONS], check=True)

    said = cluster.run(lambda: cluster.said, "--watchdog", "1", prepare=without_fusectl)
    assert "the watchdog cannot work" in said
    assert "HINT" in said


def test_memory_of_the_daemon_is_closed_to_its_own_user(cluster: Cluster) -> None:
    """A program that broke into the server, as the same user, must not read the keys from there."""

    def look() -> dict[str, int]:
        (daemon,) = cluster.volume.daemons
        seen = {}
        for name in ("mem", "environ", "maps", "fd/0"):
            try:
                os.close(os.open(f"/proc/{daemon}/{name}", os.O_RDONLY))
                seen[name] = 0
            except OSError as error:
                seen[name] = error.errno or -1
        return seen

    seen = cluster.run(look)
    assert seen.keys() == {"mem", "environ", "maps", "fd/0"}
    assert set(seen.values()) == {errno.EACCES}, seen


def test_the_doctor_says_that_the_clusters_user_can_get_the_keys(cluster: Cluster) -> None:
    pgdata = cluster.volume.mountpoint / "main"

    def examine() -> str:
        (pgdata / "global").mkdir(parents=True)
        (pgdata / "PG_VERSION").write_text("15\n")
        shutil.copyfile(CONTROL_FILE, pgdata / "global" / "pg_control")
        words: list[str | Path] = [TDEFS, "doctor", cluster.volume.mountpoint]
        said: str = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/").stdout
        return said

    assert f"the daemon runs as {cluster.account.name}, as PostgreSQL does" in cluster.run(examine)

"""A daemon of a user of its own, with the capabilities that docs/OPERATING.md names, serves PostgreSQL.

It is no root, and keeps the keys from the cluster's user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.tracer import seize
from tests.support.account import Account
from tests.support.children import in_child, needs_root
from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.volume import LIMIT, TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

UID = 47110
#: As conf/tdefs-user.conf has them.
UNIT = Path(__file__).parents[2] / "conf" / "tdefs-user.conf"
_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def capabilities() -> list[str]:
    (line,) = (line for line in UNIT.read_text().splitlines() if line.startswith("AmbientCapabilities="))
    return [word.removeprefix("CAP_").lower() for word in line.partition("=")[2].split()]


class Daemon:
    """A volume of the user ``tdefs``, in a mount namespace where there is such a user."""

    def __init__(self, scratch: Workspace) -> None:
        self.account: Account = scratch.account
        self.volume: Volume = scratch.volume("separate")
        self.device = self.volume.root / "fuse"
        os.mknod(self.device, 0o020666, Path("/dev/fuse").stat().st_rdev)
        self.device.chmod(0o666)
        for path in (self.volume.root, *self.volume.root.iterdir()):
            os.chown(path, UID, UID)

    def as_tdefs(self, *words: str | Path) -> str:
        rights = ",".join(f"+{name}" for name in capabilities())
        user = [f"--reuid={UID}", f"--regid={UID}", "--clear-groups", f"--inh-caps={rights}"]
        return run("setpriv", *user, f"--ambient-caps={rights}", "--", *words)

    def as_server(self, *words: str | Path) -> str:
        return run(*self.account.command(*words))

    def inside(self, action: Callable[[], None]) -> None:
        """Mounts, and runs it, in a namespace that goes away."""
        volume = self.volume

        def enter() -> None:
            assert _libc.unshare(_CLONE_NEWNS) == 0
            assert _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
            subprocess.run(["sh", "-c", LET_GO_OF_OTHERS, "sh", volume.root], check=True)
            subprocess.run(["mount", "--bind", self.device, "/dev/fuse"], check=True)
            self._replace("/etc/passwd", f"tdefs:x:{UID}:{UID}::/nonexistent:/usr/sbin/nologin\n")
            self._replace("/etc/fuse.conf", "user_allow_other\n")
            self.as_tdefs(TDEFS, "init", volume.backing, *volume.unlock, "--keystore", volume.keystore)
            words: list[str | Path] = [*volume.unlock, "--log-file", volume.log, "-o", "allow_other"]
            self.as_tdefs(TDEFS, "mount", volume.backing, volume.mountpoint, *words)
            self.account.own(volume.mountpoint)
            volume.mountpoint.chmod(0o700)
            try:
                action()
            finally:
                self.as_tdefs(TDEFS, "umount", volume.mountpoint)

        in_child(enter)

    def _replace(self, path: str, more: str) -> None:
        copy = self.volume.root / Path(path).name
        copy.write_text(Path(path).read_text() + more)
        subprocess.run(["mount", "--bind", copy, path], check=True)


def run(*words: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def daemon(scratch: Workspace) -> Daemon:
    return Daemon(scratch)


def test_postgresql_works_on_a_mount_of_a_separate_user_and_gets_no_key(
    daemon: Daemon, scratch: Workspace
) -> None:
    volume = daemon.volume
    programs = scratch.installation("15").bindir
    pgdata = volume.mountpoint / "pg"
    sockets = scratch.directory("sockets")
    daemon.account.own(sockets)
    options = f"-k {sockets} -c listen_addresses= -c fsync=off"

    def work() -> None:
        daemon.as_server(programs / "initdb", "--no-sync", "-D", pgdata)
        pg_ctl: list[str | Path] = [
            programs / "pg_ctl",
            "-D",
            pgdata,
            "-w",
            "-s",
            "-l",
            sockets / "log",
            "-o",
            options,
        ]
        daemon.as_server(*pg_ctl, "start")
        try:
            sql = "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number; CHECKPOINT"
            daemon.as_server("psql", "-Xqh", sockets, "-c", sql, "postgres")
        finally:
            daemon.as_server(*pg_ctl, "-m", "fast", "stop")
        daemon.as_server(*pg_ctl, "start")
        try:
            said = daemon.as_server("psql", "-XqAth", sockets, "-c", "SELECT count(*) FROM kept", "postgres")
            assert said == "1000\n"
        finally:
            daemon.as_server(*pg_ctl, "-m", "fast", "stop")
        assert {path.lstat().st_uid for path in volume.data.rglob("*")} == {daemon.account.uid}
        (process,) = volume.daemons
        assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in Path(f"/proc/{process}/status").read_text()
        errors = in_child(
            lambda: [_error(what) for what in attempts(process, volume)],
            uid=daemon.account.uid,
            gid=daemon.account.gid,
        )
        assert set(errors) <= {errno.EACCES, errno.EPERM}, errors

    daemon.inside(work)


def attempts(process: int, volume: Volume) -> list[Callable[[], object]]:
    """What the cluster's user might try against the daemon."""
    return [
        lambda: seize(process),
        lambda: os.kill(process, 9),
        lambda: Path(f"/proc/{process}/mem").open("rb"),
        lambda: Path(f"/proc/{process}/environ").open("rb"),
        lambda: os.listdir(f"/proc/{process}/fd"),
        lambda: volume.keystore.open("rb"),
        lambda: volume.key_file.open("rb"),
        lambda: os.listdir(volume.backing),
        lambda: volume.log.open("ab"),
    ]


def _error(what: Callable[[], object]) -> int:
    try:
        what()
    except OSError as error:
        return error.errno or -1
    return 0


_MAKE = """
import os, sys
from tdefs.data.calls import Owner, SystemCalls
uid, gid = int(sys.argv[2]), int(sys.argv[3])
directory = os.open(sys.argv[1], os.O_RDONLY)
fd = SystemCalls().create("test", b"new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, directory, Owner(uid, gid))
print(os.fstat(fd).st_uid == uid, os.fstat(fd).st_gid == gid, os.geteuid())
"""


def test_a_new_file_is_its_owners_from_the_first_instant_on(daemon: Daemon) -> None:
    """A daemon that gave it away later could die in between, and PostgreSQL could not open it."""
    directory = daemon.volume.root / "of the server"
    directory.mkdir(mode=0o700)
    daemon.account.own(directory)
    owner = [str(daemon.account.uid), str(daemon.account.gid)]
    said = daemon.as_tdefs(sys.executable, "-I", "-c", _MAKE, directory, *owner)
    assert said == f"True True {UID}\n"

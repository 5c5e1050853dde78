"""A mount that is refused ends with the reason and with what to do. Covers tdefs/mounts/failure.py."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdefs.errors import Exit
from tests.support.account import Account
from tests.support.children import in_child, needs_root
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

_CLONE_NEWNS = 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_HELPER = shutil.which("fusermount3") or "/usr/bin/fusermount3"
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A mount namespace in which parts of the host are replaced, and a volume of the server's user."""

    def __init__(self, space: Workspace, *, root: bool = False) -> None:
        """:param root: whether the volume is root's"""
        self.account: Account = space.account
        self.volume: Volume = space.volume("refused")
        self.spare = self.volume.root / "spare"
        self.spare.mkdir(mode=0o755)
        self._replaced: list[tuple[Path, str]] = []
        for path in (self.volume.root, *self.volume.root.iterdir()):
            if not root:
                self.account.own(path)
        self.device(0o666)  # in a container of root's it may be root's alone
        assert self.run("init", self.volume.backing, keyed=True, root=root)[0] == Exit.OK

    def replace(self, path: str, by: Path) -> None:
        self._replaced.append((by, path))

    def device(self, mode: int) -> None:
        node = self.spare / f"fuse-{mode:o}"
        os.mknod(node, 0o020000 | mode, Path("/dev/fuse").stat().st_rdev)
        node.chmod(mode)
        self.replace("/dev/fuse", node)

    def run(
        self, *words: str | Path, keyed: bool = False, root: bool = False, setpriv: tuple[str, ...] = ()
    ) -> tuple[int, str]:
        """Return exit code and output of tdefs in the namespace."""
        command = [str(TDEFS), *map(str, words), *(self.volume.unlock if keyed else ())]
        if keyed:
            command += ["--keystore", str(self.volume.root / "keystore")]

        def inside() -> tuple[int, str]:
            assert _libc.unshare(_CLONE_NEWNS) == 0
            assert _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
            for by, path in self._replaced:
                subprocess.run(["mount", "--bind", by, path], check=True)
            words = command if root else self.account.command(*command)
            words = ["setpriv", *setpriv, *words] if setpriv else words
            done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", timeout=60)
            if "mount" in command and done.returncode == 0:
                # the daemon's own user must, or it would live on with the namespace
                umount = [str(TDEFS), "umount", str(self.volume.mountpoint)]
                subprocess.run(umount if root else self.account.command(*umount), check=True, cwd="/", timeout=60)
            return done.returncode, done.stdout + done.stderr

        return in_child(inside)

    def mount(self, *options: str, root: bool = False, setpriv: tuple[str, ...] = ()) -> tuple[int, str]:
        place = (self.volume.backing, self.volume.mountpoint)
        if root:
            for path in (self.volume.backing, self.volume.backing / ".tdefs"):
                os.chown(path, 0, 0)
        return self.run("mount", *place, *options, keyed=True, root=root, setpriv=setpriv)


@pytest.fixture
def host(scratch: Workspace, request: pytest.FixtureRequest) -> Iterator[Host]:
    callspec = getattr(request.node, "callspec", None)
    host = Host(scratch, root=callspec is not None and "root" in callspec.params.get("options", {}))
    yield host
    assert not host.volume.daemons


def copy_of_helper(host: Host, mode: int) -> None:
    shutil.copyfile(_HELPER, host.spare / "helper")
    (host.spare / "helper").chmod(mode)
    host.replace(_HELPER, host.spare / "helper")


def without_device(host: Host) -> None:
    """A /dev as a container has it, in which only fuse is missing."""
    place = host.spare / "dev"
    place.mkdir()
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        os.mknod(place / name, 0o020666, Path("/dev", name).stat().st_rdev)
        (place / name).chmod(0o666)
    host._replaced.clear()
    host.replace("/dev", place)


NO_ADMIN = ("--bounding-set", "-sys_admin")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (without_device, {}, ("/dev/fuse cannot be opened: No such file or directory", "modprobe fuse")),
        (
            without_device,
            {"root": True},
            ("/dev/fuse cannot be opened: No such file or directory", "--device /dev/fuse"),
        ),
        (lambda host: host.device(0o600), {}, ("/dev/fuse cannot be opened: Permission denied", "chmod 666")),
        (lambda _: None, {"setpriv": ("--no-new-privs",)}, ("no_new_privs is set", "NoNewPrivileges=")),
        (lambda _: None, {"setpriv": NO_ADMIN}, ("CAP_SYS_ADMIN", "--cap-add SYS_ADMIN")),
        (lambda _: None, {"setpriv": NO_ADMIN, "root": True}, ("lacks CAP_SYS_ADMIN", "--cap-add SYS_ADMIN")),
        (lambda host: copy_of_helper(host, 0o755), {}, ("is not setuid root", "chmod u+s")),
        (
            lambda host: copy_of_helper(host, 0o644),
            {},
            ("fusermount3 is not installed", "install the package fuse3"),
        ),
        (lambda host: host.volume.mountpoint.chmod(0o555), {}, ("may not write to the mount point", "as root")),
        (lambda _: None, {"setpriv": ()}, None),
        (lambda _: None, {"setpriv": ("--no-new-privs",), "root": True}, None),
    ],
    ids=[
        *("no device", "no device for root", "device of root's", "no_new_privs", "no capability"),
        *("no capability for root", "helper without setuid", "no helper", "foreign mount point"),
        *("nothing", "no_new_privs for root"),
    ],
)
def test_refusal_names_what_is_in_the_way(
    host: Host, change: Callable[[Host], object], options: dict[str, object], said: tuple[str, str] | None
) -> None:
    change(host)
    session = host.volume.backing / ".tdefs" / "session.json"
    code, output = host.mount(**options)  # type: ignore[arg-type]
    if said is None:
        assert code == Exit.OK, output
        return
    assert code == Exit.MOUNT_FAILED, output
    (detail,) = [line for line in output.splitlines() if line.startswith("DETAIL:")]
    (hint,) = [line for line in output.splitlines() if line.startswith("HINT:")]
    assert said[0] in detail
    assert said[1] in hint
    assert "Traceback" not in output
    assert '"clean": true' in session.read_text()


def test_option_that_the_host_forbids_is_named(host: Host) -> None:
    (host.spare / "fuse.conf").write_text("# user_allow_other\n")
    if not Path("/etc/fuse.conf").exists():
        pytest.skip("there is no /etc/fuse.conf to be replaced")
    host.replace("/etc/fuse.conf", host.spare / "fuse.conf")
    code, output = host.mount("-o", "allow_other")
    assert code == Exit.MOUNT_FAILED
    assert 'needs the line "user_allow_other" in /etc/fuse.conf' in output

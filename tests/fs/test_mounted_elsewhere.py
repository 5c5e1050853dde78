"""Mounts that are mounted in several places, and mounts inside mounts: none is taken away from who uses it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdefs.cli import umount
from tdefs.cli.main import build_parser
from tdefs.errors import Exit, TdefsError
from tests.support.children import needs_root
from tests.support.mounts import LET_GO_OF_OTHERS, detach, is_mounted, mounts_below
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

#: An unmount that is refused says so at once, and does not wait for a daemon to end.
AT_ONCE_SECONDS = 20


@pytest.fixture
def shared(scratch: Workspace, volume: Volume) -> Iterator[Volume]:
    """A mounted volume, whose mount point lies where systemd would have it: mounts are passed on to copies."""
    subprocess.run(["mount", "--bind", volume.root, volume.root], check=True)
    try:
        subprocess.run(["mount", "--make-shared", volume.root], check=True)
        volume.mount()
        (volume.mountpoint / "base").mkdir()
        (volume.mountpoint / "file").write_bytes(b"content" * 2000)
        yield volume
    finally:
        for point in mounts_below(volume.root):
            detach(point)


@contextmanager
def in_namespace(propagation: str, script: str, *, ready: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell in a mount namespace of its own, which runs a script and then sleeps."""
    ready.unlink(missing_ok=True)
    command = ["unshare", "--mount", f"--propagation={propagation}", "sh", "-ec"]
    script = f"{LET_GO_OF_OTHERS}\n{script}\ntouch {shlex.quote(str(ready))}\nsleep 120 & wait"
    with subprocess.Popen([*command, script, "sh", ready.parent], cwd="/", process_group=0) as process:
        try:
            assert wait_until(ready.exists, 20)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def check_refused(volume: Volume, *names: str) -> str:
    """Checks that it stays mounted, is served, and that the message says by whom it is used, or where."""
    (daemon,) = volume.daemons
    began = time.monotonic()
    done = volume.tdefs("umount", volume.mountpoint, check=False)
    assert done.returncode == Exit.MOUNT_BUSY, done.stderr
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert [name for name in names if name not in done.stderr] == [], done.stderr
    assert "HINT" in done.stderr
    assert "cannot see" not in done.stderr
    assert volume.is_mounted
    # the same rule holds for a daemon that is told to end
    send(daemon, signal.SIGTERM)
    assert wait_until(lambda: "cannot end yet" in volume.log.read_text(), 15)
    said = volume.log.read_text().partition("cannot end yet")[2]
    assert [name for name in names if name not in said] == [], said
    assert is_alive(daemon)
    (volume.mountpoint / "new").write_bytes(b"it lives on")
    return done.stderr


def check_ends(volume: Volume, daemon: int) -> None:
    """Checks that the daemon, which was told to end, does so once nothing is in its way."""
    assert wait_until(lambda: not is_alive(daemon), 20), volume.log_tail()
    assert not volume.is_mounted
    assert json.loads((volume.backing / ".tdefs" / "session.json").read_text())["clean"] is True


# --- in this namespace


@pytest.mark.parametrize("what", ["", "base"], ids=["all of it", "a directory in it"])
def test_a_bind_mount_of_a_mount_is_named_and_keeps_it(volume: Volume, what: str) -> None:
    volume.mount()
    (volume.mountpoint / "base").mkdir()
    bound = volume.root / "it's bound"
    bound.mkdir()
    (daemon,) = volume.daemons
    subprocess.run(["mount", "--bind", volume.mountpoint / what, bound], check=True)
    try:
        said = check_refused(volume, f'at "{bound}"')
        assert f"umount {shlex.quote(str(bound))}" in said
    finally:
        subprocess.run(["umount", bound], check=True)
    check_ends(volume, daemon)


def test_who_uses_a_bind_mount_that_was_detached_is_named(volume: Volume) -> None:
    volume.mount()
    bound = volume.root / "bound"
    bound.mkdir()
    (daemon,) = volume.daemons
    subprocess.run(["mount", "--bind", volume.mountpoint, bound], check=True)
    with (bound / "held").open("wb"):
        subprocess.run(["umount", "-l", bound], check=True)
        check_refused(volume, f"(process {os.getpid()})")
    check_ends(volume, daemon)


# --- in other namespaces


@pytest.mark.parametrize(
    "use", ["cd /", "exec 3< file; cd /", "cd base"], ids=["not used", "open file", "directory"]
)
def test_a_mount_in_a_private_namespace_is_named_and_keeps_it(shared: Volume, use: str) -> None:
    (daemon,) = shared.daemons
    script = f"cd {shlex.quote(str(shared.mountpoint))}; {use}"
    with in_namespace("private", script, ready=shared.root / "ready") as process:
        said = check_refused(shared, f'at "{shared.mountpoint}"', f"(process {process.pid})")
        assert f"nsenter -t {process.pid} -m umount {shared.mountpoint}" in said
    check_ends(shared, daemon)


def test_the_advice_for_a_private_namespace_frees_the_mount(shared: Volume) -> None:
    with in_namespace("private", "", ready=shared.root / "ready"):
        done = shared.tdefs("umount", shared.mountpoint, check=False)
        assert done.returncode == Exit.MOUNT_BUSY
        advice = done.stderr.partition("then unmount it there: ")[2].strip()
        subprocess.run(["sh", "-c", advice], check=True)
        shared.umount()


def test_umount_says_what_may_keep_the_mount_where_that_cannot_be_seen(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount namespace without a process, kept by a file alone."""
    volume.mount()
    (daemon,) = volume.daemons
    own = volume.root / "namespaces"
    own.mkdir()
    kept = own / "one"
    kept.touch()
    subprocess.run(["mount", "--bind", own, own], check=True)
    try:
        subprocess.run(["mount", "--make-private", own], check=True)
        command = ["unshare", f"--mount={kept}", "--propagation=private", "sh", "-c", LET_GO_OF_OTHERS]
        subprocess.run([*command, "sh", volume.root], check=True)
        monkeypatch.setattr(umount, "_WAIT_SECONDS", 1)
        with pytest.raises(TdefsError) as refused:
            args = build_parser("umount").parse_args(["umount", str(volume.mountpoint)])
            args.run(args)
        assert refused.value.exit_code is Exit.MOUNT_FAILED
        assert "findmnt -t nsfs" in refused.value.detail
        assert is_alive(daemon)
    finally:
        subprocess.run(["umount", "-l", kept], check=False)
        subprocess.run(["umount", "-l", own], check=True)
    check_ends(volume, daemon)


def test_mount_says_in_which_namespace_a_volume_is_still_mounted(shared: Volume) -> None:
    """After a plain umount, which asks nobody."""
    with in_namespace("private", "", ready=shared.root / "ready") as process:
        subprocess.run(["umount", shared.mountpoint], check=True)
        done = shared.tdefs("mount", shared.backing, shared.mountpoint, *shared.unlock, check=False)
        assert done.returncode == Exit.VOLUME_IN_USE
        assert f'it is mounted at "{shared.mountpoint}" in the mount namespace of' in done.stderr
        assert f"(process {process.pid})" in done.stderr


@pytest.mark.parametrize("propagation", ["slave", "shared"])
def test_a_service_that_only_inherited_the_mount_does_not_keep_it(shared: Volume, propagation: str) -> None:
    """As each systemd service with PrivateTmp= or ProtectSystem= that was started after the mount."""
    with in_namespace(propagation, "", ready=shared.root / "ready"):
        shared.umount()
    shared.mount()
    (daemon,) = shared.daemons
    with in_namespace(propagation, "", ready=shared.root / "ready"):
        send(daemon, signal.SIGTERM)
        check_ends(shared, daemon)


def test_a_service_of_a_service_that_only_inherited_the_mount_does_not_keep_it(shared: Volume) -> None:
    """A slave of a slave, also where it is passed on by a peer of that; and a directory bound over itself."""
    script = f"""
        mount --make-rshared /
        unshare --mount --propagation=slave sleep 120 &
        mount --rbind {shlex.quote(str(shared.root))} {shlex.quote(str(shared.root))}
        sleep 0.5
    """
    with in_namespace("slave", script, ready=shared.root / "ready"):
        shared.umount()


@pytest.mark.parametrize("use", ["exec 3< file; cd /", "cd base"], ids=["open file", "directory"])
def test_who_uses_the_mount_in_a_service_is_named(shared: Volume, use: str) -> None:
    (daemon,) = shared.daemons
    script = f"cd {shlex.quote(str(shared.mountpoint))}; {use}"
    with in_namespace("slave", script, ready=shared.root / "ready") as process:
        check_refused(shared, f"(process {process.pid})")
    check_ends(shared, daemon)


def test_a_service_that_has_mounted_something_inside_is_named(shared: Volume) -> None:
    (daemon,) = shared.daemons
    script = f"mount -t tmpfs none {shlex.quote(str(shared.mountpoint))}/base"
    with in_namespace("slave", script, ready=shared.root / "ready") as process:
        check_refused(shared, f"(process {process.pid})")
    check_ends(shared, daemon)


# --- mounts inside


@pytest.fixture
def nested(scratch: Workspace, volume: Volume) -> tuple[Volume, Volume]:
    """A volume, and a second one that is mounted inside it, as of a separate pg_wal."""
    inner = scratch.volume("inner")
    inner.init()
    volume.mount()
    inner.mountpoint = volume.mountpoint / "data" / "pg_wal"
    inner.mountpoint.mkdir(parents=True)
    inner.mount()
    (inner.mountpoint / "segment").write_bytes(b"WAL")
    # the inner one first, at the end
    scratch.volumes[-2:] = [inner, volume]
    return volume, inner


def check_inner_is_named(done: subprocess.CompletedProcess[str], inner: Volume) -> None:
    assert done.returncode == Exit.MOUNT_BUSY, done.stderr
    assert f'"{inner.mountpoint}" (fuse.tdefs, of {inner.backing})' in done.stderr
    assert f"in this order: tdefs umount {inner.mountpoint}\n" in done.stderr
    assert is_mounted(inner.mountpoint)


def test_umount_names_what_is_mounted_inside(nested: tuple[Volume, Volume]) -> None:
    outer, inner = nested
    check_inner_is_named(outer.tdefs("umount", outer.mountpoint, check=False), inner)
    assert outer.status()["mounts_inside"] == [str(inner.mountpoint)]
    assert f"mounted inside  {inner.mountpoint}\n" in outer.tdefs("status", outer.mountpoint).stdout
    inner.umount()
    assert outer.status()["mounts_inside"] == []
    outer.umount()


@pytest.mark.parametrize("inner_is", ["live", "dead"])
def test_a_mount_inside_a_dead_one_stays_and_is_named_by_mount_and_umount(
    nested: tuple[Volume, Volume], inner_is: str
) -> None:
    outer, inner = nested
    outer.kill()
    if inner_is == "dead":
        inner.kill()
    mount = outer.tdefs("mount", outer.backing, outer.mountpoint, *outer.unlock, check=False)
    check_inner_is_named(mount, inner)
    check_inner_is_named(outer.tdefs("umount", outer.mountpoint, check=False), inner)
    status = outer.tdefs("status", outer.mountpoint, check=False)
    assert status.returncode == Exit.NOT_MOUNTED
    assert f'mounted inside it: "{inner.mountpoint}"' in status.stderr
    if inner_is == "live":
        assert (inner.mountpoint / "segment").read_bytes() == b"WAL"
    # what it says to do works, and nothing that was inside is lost
    inner.tdefs("umount", inner.mountpoint)
    refused = inner.tdefs("mount", inner.backing, inner.mountpoint, *inner.unlock, check=False)
    assert refused.returncode == Exit.MOUNTPOINT_INVALID, refused.stderr
    outer.mount()
    inner.mount()
    assert (inner.mountpoint / "segment").read_bytes() == b"WAL"
    inner.umount()
    outer.umount()


def test_of_several_mounts_inside_the_order_that_is_said_works(nested: tuple[Volume, Volume]) -> None:
    outer, inner = nested
    (outer.mountpoint / "stats").mkdir()
    (inner.mountpoint / "archive status").mkdir()
    for point in (outer.mountpoint / "stats", inner.mountpoint / "archive status"):
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    outer.kill()
    done = outer.tdefs("mount", outer.backing, outer.mountpoint, *outer.unlock, check=False)
    assert done.returncode == Exit.MOUNT_BUSY
    order = done.stderr.partition("in this order: ")[2].strip().split(", ")
    assert len(order) == 3
    for command in order:
        subprocess.run(["sh", "-ec", re.sub("^tdefs", inner.program[0], command)], check=True)
    outer.mount()

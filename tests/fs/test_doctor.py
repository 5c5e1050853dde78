"""The doctor does not say that nothing weakens a mount where something does, as docs/THREATS.md names it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdefs.doctor.beside import examine_surroundings
from tdefs.errors import Exit
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import Volume
from tests.support.workspace import Workspace

CAPTURED = Path(__file__).parents[1] / "unit" / "pg" / "data"
HEALTHY = "nothing weakens this mount"
POLICY = "version: 1\n"


def make_cluster(pgdata: Path, control: str = "pg15_checksums") -> None:
    for name in ("global", "pg_wal", "pg_tblspc", "base/5"):
        (pgdata / name).mkdir(parents=True)
    (pgdata / "PG_VERSION").write_text("15\n")
    (pgdata / "base/5/1259").write_bytes(b"\0" * 100 + b"rows")
    (pgdata / "postgresql.conf").write_text("fsync = on\n")
    shutil.copyfile(CAPTURED / f"{control}.pg_control", pgdata / "global/pg_control")


def _volume(workspace: Workspace) -> Volume:
    volume = workspace.volume("doctor")
    volume.backing.chmod(0o700)
    volume.init(policy=POLICY)
    (volume.root / "tdefs.yaml").write_text("version: 1\n")
    volume.mount()
    make_cluster(volume.mountpoint / "main")
    return volume


@pytest.fixture
def own(scratch: Workspace) -> Volume:
    """A mounted volume with what looks like a cluster, a policy that encrypts everything, and a configuration."""
    return _volume(scratch)


@pytest.fixture(scope="module")
def shared(workspace: Workspace) -> Iterator[Volume]:
    """The same, for all tests that need no mount of their own."""
    volumes = len(workspace.volumes)
    yield _volume(workspace)
    workspace.release(volumes, len(workspace.servers))


@pytest.fixture
def cluster(shared: Volume) -> Iterator[Volume]:
    """The shared volume, which is healthy again afterwards."""
    yield shared
    for name, text in (("policy.yaml", POLICY), ("tdefs.yaml", "version: 1\n")):
        (shared.root / name).write_text(text)
        (shared.root / name).chmod(0o644)
    shared.backing.chmod(0o700)
    for place in (shared.backing, shared.backing / ".tdefs"):
        os.chown(place, os.geteuid(), -1)
    if not shared.keystore.exists():
        (shared.root / "lost").rename(shared.keystore)
    for path in (
        "pg_hba.conf",
        "base/5/pipe",
        "base/5/pg_wal",
        "inside",
        "absolute",
        "out",
        "pg_tblspc/16400",
        "../.tdefs/secret",
    ):
        (shared.data / "main" / path).unlink(missing_ok=True)


def said(volume: Volume) -> list[tuple[str, str]]:
    """Level and text of what the doctor finds."""
    words = ("doctor", volume.mountpoint, "--config", volume.root / "tdefs.yaml")
    done = volume.tdefs(*words, "--json", check=False)
    found = [(one["level"], one["what"]) for one in json.loads(done.stdout)]
    assert all(one["hint"] for one in json.loads(done.stdout))
    assert done.returncode == (43 if any(level == "risk" for level, _ in found) else 0)
    return found


def told(volume: Volume, level: str, text: str) -> bool:
    found = said(volume)
    assert any(one == level and text in what for one, what in found), found
    return True


def test_nothing_weakens_a_healthy_mount(cluster: Volume) -> None:
    assert said(cluster) == []
    done = cluster.tdefs("doctor", cluster.mountpoint, "--config", cluster.root / "tdefs.yaml")
    assert HEALTHY in done.stdout
    assert "THREATS.md" in done.stdout, "it says more than it knows"


@pytest.mark.parametrize(
    "place",
    [
        "{root}/mnt.clear",
        "{root}/old/15/main",
        "{root}/backing.orig/main",
        "{above}/main.clear",
        "{root}/main.old",
    ],
)
def test_a_copy_of_the_cluster_in_the_clear_is_found(cluster: Volume, place: str) -> None:
    path = Path(place.format(root=cluster.root, above=cluster.root.parent))
    make_cluster(path)
    if path.name == "main.old":
        (path / "global/pg_control").rename(path / "global/pg_control.old")
    assert told(cluster, "risk", f"{path} holds a copy of the cluster in the clear")
    shutil.rmtree(path)


@needs_root
def test_who_may_not_look_everywhere_is_told_of_the_rest(cluster: Volume) -> None:
    closed, copy = cluster.root / "closed", cluster.root / "copy"
    make_cluster(closed / "deep")
    make_cluster(copy)
    for path in (closed, cluster.root / "closed too"):
        path.mkdir(exist_ok=True)
        path.chmod(0o700)
    place = cluster.root / "place"
    found = in_child(
        lambda: [one.what for one in examine_surroundings(place, cluster.backing, [copy])], uid=NOBODY
    )
    assert found == [f"{copy} holds a copy of the cluster in the clear"]
    for path in (closed, cluster.root / "closed too", copy):
        shutil.rmtree(path)


def test_another_cluster_beside_the_mount_is_no_copy(cluster: Volume) -> None:
    make_cluster(cluster.root / "other")
    control = cluster.root / "other/global/pg_control"
    shutil.copyfile(CAPTURED / "pg15_no_checksums.pg_control", control)
    assert told(cluster, "advice", f"{cluster.root / 'other'}, beside the mount, holds another cluster")
    shutil.rmtree(cluster.root / "other")


@needs_root
def test_what_the_mount_hides_is_found(own: Volume) -> None:
    own.umount()
    make_cluster(own.mountpoint)
    own.mount()
    assert told(own, "risk", "a cluster lies in the clear in the directory that the mount hides")


def _plant_link(cluster: Volume) -> None:
    (cluster.root / "outside").write_text("trust\n")
    (cluster.data / "main/pg_hba.conf").symlink_to(cluster.root / "outside")


def _link_out(cluster: Volume) -> None:
    (cluster.mountpoint / "main/out").symlink_to(cluster.root / "outside")


def _tablespace_out(cluster: Volume) -> None:
    (cluster.mountpoint / "main/pg_tblspc/16400").symlink_to(cluster.root)


def _plant_link_with_a_servers_name(cluster: Volume) -> None:
    (cluster.data / "main/base/5/pg_wal").symlink_to(cluster.root)


def _plant_fifo(cluster: Volume) -> None:
    os.mkfifo(cluster.data / "main/base/5/pipe")


def _open_backing(cluster: Volume) -> None:
    cluster.backing.chmod(0o722)


def _foreign_backing(cluster: Volume) -> None:
    os.chown(cluster.backing, NOBODY, NOBODY)


def _foreign_private(cluster: Volume) -> None:
    os.chown(cluster.backing / ".tdefs", NOBODY, NOBODY)


def _break_policy(cluster: Volume) -> None:
    (cluster.root / "policy.yaml").write_text("version: 1\nkinds: {wall: plain}\n")


def _remove_policy(cluster: Volume) -> None:
    (cluster.root / "policy.yaml").unlink()


def _unknown_key(cluster: Volume) -> None:
    (cluster.root / "policy.yaml").write_text("version: 1\ndefault: dk_9\n")


def _plain_wal(cluster: Volume) -> None:
    (cluster.root / "policy.yaml").write_text("version: 1\nkinds: {wal: plain}\n")


def _writable_policy(cluster: Volume) -> None:
    (cluster.root / "policy.yaml").chmod(0o666)


def _lose_keystore(cluster: Volume) -> None:
    cluster.keystore.rename(cluster.root / "lost")


def _secret_in_backing(cluster: Volume) -> None:
    (cluster.backing / ".tdefs/secret").touch(0o600)
    (cluster.root / "tdefs.yaml").write_text(
        f"version: 1\nvolumes:\n  {cluster.backing}: {{passphrase_file: {cluster.backing}/.tdefs/secret}}\n"
    )


def _other_policy(cluster: Volume) -> None:
    (cluster.root / "other.yaml").write_text("version: 1\nkinds: {temp: plain}\n")
    (cluster.root / "tdefs.yaml").write_text(
        f"version: 1\nvolumes:\n  {cluster.backing}: {{policy: {cluster.root}/other.yaml}}\n"
    )


@pytest.mark.parametrize(
    ("weaken", "level", "text"),
    [
        (_plant_link, "risk", "and that it refuses: main/pg_hba.conf"),
        (
            _link_out,
            "risk",
            "links lead out of all tdefs mounts, to where everything is in the clear: main/out -> ",
        ),
        (_tablespace_out, "risk", "main/pg_tblspc/16400 -> "),
        (_plant_link_with_a_servers_name, "risk", "main/base/5/pg_wal (Input/output error)"),
        (_plant_fifo, "risk", "main/base/5/pipe"),
        (_open_backing, "risk", "group or others may write to"),
        pytest.param(_foreign_backing, "risk", f"belongs to user {NOBODY}", marks=needs_root),
        pytest.param(_foreign_private, "risk", "not to the daemon's", marks=needs_root),
        (_break_policy, "risk", "the next mount fails, and with it the start of the server"),
        (_remove_policy, "risk", "the next mount fails, and with it the start of the server"),
        (_unknown_key, "risk", "uses the data key dk_9, which the keystore does not hold"),
        (_plain_wal, "risk", "leaves the kind wal in the clear"),
        (_plain_wal, "advice", "was changed after the mount had begun"),
        (_other_policy, "advice", "and the next one will use"),
        (_writable_policy, "risk", "can be changed by others than its owner"),
        (_lose_keystore, "risk", "there is no keystore"),
        (_secret_in_backing, "risk", "lies in the backing directory"),
    ],
)
def test_each_thing_that_weakens_a_mount_is_told(
    cluster: Volume, weaken: Callable[[Volume], None], level: str, text: str
) -> None:
    weaken(cluster)
    assert told(cluster, level, text)


def test_a_policy_that_only_the_next_mount_has_is_not_called_changed(scratch: Workspace) -> None:
    volume = scratch.volume()
    volume.backing.chmod(0o700)
    volume.init()
    volume.mount()
    _other_policy(volume)
    assert told(volume, "advice", f"the mount uses no policy, and the next one will use {volume.root}/other.yaml")


def test_a_mount_that_something_weakens_is_not_called_healthy(cluster: Volume) -> None:
    _plant_link(cluster)
    done = cluster.tdefs("doctor", cluster.mountpoint, "--config", cluster.root / "tdefs.yaml", check=False)
    assert HEALTHY not in done.stdout
    assert "RISK: links lie in the backing directory that tdefs did not make there" in done.stdout
    assert done.returncode == 43


def test_links_within_mounts_are_listed_and_in_order(own: Volume) -> None:
    (own.mountpoint / "main/inside").symlink_to("postgresql.conf")
    (own.mountpoint / "main/absolute").symlink_to(own.mountpoint / "main/PG_VERSION")
    ((level, what),) = said(own)
    assert level == "note"
    for link in ("main/inside -> postgresql.conf", f"main/absolute -> {own.mountpoint}/main/PG_VERSION"):
        assert link in what


def test_plain_files_under_a_policy_that_encrypts_them_are_told(own: Volume) -> None:
    own.accept(policy="version: 1\nkinds: {wal: plain}\n")
    own.umount()
    own.mount()
    (own.mountpoint / "main/pg_wal/000000010000000000000001").write_bytes(b"rows" * 5000)
    (own.mountpoint / "main/pg_wal/000000010000000000000002").write_bytes(bytes(20_000))
    own.accept(policy=POLICY)
    own.umount()
    own.mount()
    (own.data / "main/pg_hba.conf").write_text("host all all all trust\n")
    path = own.data / "main/base/5/1259"
    path.write_bytes(bytes(8192) + path.read_bytes()[8192:])
    found = (
        "2 files are in the clear that the policy encrypts: main/pg_hba.conf, main/pg_wal/000000010000000000000001"
    )
    assert told(own, "risk", found)
    assert told(own, "risk", "1 file is damaged, and cannot be opened: main/base/5/1259")
    assert told(own, "advice", "the volume may hold plain files")


def test_a_large_cluster_does_not_take_long(own: Volume) -> None:
    own.accept(policy="version: 1\nkinds: {wal: plain}\n")
    own.umount()
    own.mount()
    directory = own.data / "main/base/6"
    directory.mkdir()
    sealed = (own.data / "main/base/5/1259").read_bytes()[:300]
    first = directory / "16384"
    first.write_bytes(sealed)
    for number in range(16385, 37000):
        if number % 1000 == 0:
            first = directory / str(number)  # a file has no more than 65000 names
            first.write_bytes(sealed)
        else:
            (directory / str(number)).hardlink_to(first)
    begun = time.monotonic()
    assert told(own, "advice", "files were not examined as to whether they are encrypted")
    assert time.monotonic() - begun < 30


def test_a_dead_mount_is_told_as_by_status(own: Volume) -> None:
    own.kill()
    said = {own.tdefs(command, own.mountpoint, check=False).stderr for command in ("doctor", "status")}
    assert len(said) == 1, said
    assert own.tdefs("doctor", own.mountpoint, check=False).returncode == Exit.NOT_MOUNTED

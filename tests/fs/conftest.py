"""Mounts that many tests share, each with a directory of its own, beside a plain one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.file import create_keystore
from tdefs.keys.protectors.command import CommandProtector
from tdefs.volume.description import create_volume, save_volume
from tdefs.volume.registry import place_of

pytest.register_assert_rewrite("tests.fs.twins", "tests.support.children", "tests.fs.life")

from tests.fs.twins import Twins  # noqa: E402 - after the line above, so that its assertions explain themselves
from tests.support.volume import Volume  # noqa: E402
from tests.support.workspace import Workspace  # noqa: E402

PLAIN_POLICY = """\
version: 1
default: plain
"""


def _served(workspace: Workspace, name: str, policy: str | None) -> Iterator[Volume]:
    volume = workspace.volume(name)
    volume.init(policy=policy)
    volume.mount()
    yield volume
    volume.umount()
    workspace.volumes.remove(volume)


@pytest.fixture
def volume(scratch: Workspace) -> Volume:
    """A volume where everything is encrypted, not mounted; made in this process, faster than by ``tdefs init``.

    It takes the place of the fixture of the same name in the directory above.
    """
    volume = scratch.volume()
    made = create_volume(volume.backing, volume.keystore)
    ring = create_keystore(made.keystore, made.volume_id, CommandProtector(volume.unlock[1]), place=place_of(made))
    save_volume(made, history_key_of(ring))
    volume.data.chmod(0o755)
    return volume


@pytest.fixture(scope="package")
def encrypted(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume where everything is encrypted, shared by all tests."""
    yield from _served(workspace, "encrypted", None)


@pytest.fixture(scope="package")
def unencrypted(workspace: Workspace) -> Iterator[Volume]:
    """A mounted volume where nothing but relation files is encrypted, shared by all tests."""
    yield from _served(workspace, "unencrypted", PLAIN_POLICY)


@pytest.fixture
def small(scratch: Workspace, tmp_path: Path) -> Iterator[Volume]:
    """A mounted volume on an ext4 of 8 MiB."""
    volume = scratch.volume("small")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, volume.backing], check=True)
    try:
        (volume.backing / "lost+found").rmdir()
        volume.init()
        volume.mount()
        yield volume
        volume.umount()
    finally:
        volume.discard()
        subprocess.run(["umount", volume.backing], check=True)


def _twins(workspace: Workspace, volume: Volume) -> Iterator[Twins]:
    plain = workspace.directory("plain")
    mount = volume.mountpoint / plain.name
    mount.mkdir()
    mount.chmod(0o755)
    before = volume.complaints()
    yield Twins(plain, mount)
    for directory in (plain, mount):
        # rm, unlike shutil.rmtree, can remove what lies beyond PATH_MAX
        subprocess.run(["rm", "-rf", str(directory)], check=True)
    assert volume.complaints()[len(before) :] == [], "the daemon complained in its log"


@pytest.fixture
def twins(workspace: Workspace, encrypted: Volume) -> Iterator[Twins]:
    """A plain directory and one on an encrypted mount. A complaint in the daemon's log fails the test."""
    yield from _twins(workspace, encrypted)


@pytest.fixture(params=["encrypted", "plain"])
def data_twins(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Twins]:
    """The same for tests about what files contain: once with encrypted files, once with plain ones."""
    yield from _twins(
        workspace, request.getfixturevalue("encrypted" if request.param == "encrypted" else "unencrypted")
    )


@pytest.fixture
def umask() -> Iterator[None]:
    """Let a test set the umask."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)

"""Files of every kind of content stay what they are under a changed policy, through a mount and without one."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.support.volume import Volume
from tests.support.workspace import Workspace

SECRET = b"4000 0000 0000 0002"
EVERYTHING = "version: 1\n"
PLAIN = "version: 1\nkinds: {wal: plain, slru: plain, configuration: plain}\n"
CONTENTS = {
    **{f"zeros{length}": bytes(length) for length in (0, 1, 8191, 8192, 8193, 1 << 24)},
    **{f"bytes{length}": (SECRET * 500)[:length] for length in (1, 8191, 8192, 8193)},
    **{f"tail{length}": bytes(length) + b"tail" for length in (1, 8191, 8192, 8193, (1 << 24) - 4)},
}
PATHS = [f"{place}/{name}" for place in ("pg_wal", "pg_xact", "conf.d", "other") for name in CONTENTS]


def _expect(volume: Volume, expected: dict[str, bytes]) -> None:
    """Each file is what it should be, through the mount."""
    for path, content in expected.items():
        assert (volume.mountpoint / path).stat().st_size == len(content), path
        assert (volume.mountpoint / path).read_bytes() == content, path


def _remount(volume: Volume, policy: str, *, crash: bool = False) -> None:
    if crash:
        volume.kill()
    else:
        volume.umount()
    volume.accept(policy=policy)
    volume.mount()


@pytest.mark.parametrize(
    ("before", "after"), [(PLAIN, EVERYTHING), (EVERYTHING, PLAIN)], ids=["now encrypted", "now plain"]
)
def test_files_are_readable_and_writable_under_a_changed_policy(
    scratch: Workspace, before: str, after: str
) -> None:
    volume = scratch.volume()
    volume.init(policy=before)
    volume.mount()
    expected: dict[str, bytes] = {}
    for path in PATHS:
        (volume.mountpoint / path).parent.mkdir(exist_ok=True)
        content = CONTENTS[path.rpartition("/")[2]]
        (volume.mountpoint / path).write_bytes(content)
        expected[path] = content
    os.sync()
    _remount(volume, after)
    listed = json.loads(volume.tdefs("ls", volume.backing, "--json").stdout)
    sizes = {entry["path"]: entry["size"] for entry in listed if entry["path"] in expected}
    assert sizes == {path: len(content) for path, content in expected.items()}
    for path in ("pg_wal/zeros16777216", "pg_xact/tail8192", "conf.d/zeros8193", "other/zeros0"):
        assert volume.cat(path) == expected[path]
    volume.tdefs("verify", volume.backing, *volume.unlock)
    _expect(volume, expected)
    _remount(volume, after, crash=True)
    _expect(volume, expected)
    for path, content in expected.items():
        place = volume.mountpoint / path
        with place.open("r+b") as file:
            file.write(SECRET)
            file.seek(0, os.SEEK_END)
            file.write(b"more")
            os.fsync(file.fileno())
        changed = SECRET + content[len(SECRET) :] + b"more"
        os.truncate(place, len(changed) - 1)
        os.truncate(place, len(changed) + 100)
        expected[path] = changed[:-1] + bytes(101)
        if after == EVERYTHING and not any(content):
            assert SECRET not in (volume.data / path).read_bytes(), f"{path} is written in clear"
    _remount(volume, after)
    _expect(volume, expected)
    for path in list(expected):
        place = volume.mountpoint / path
        # a plain file in an encrypted place is copied by it, which encrypts
        subprocess.run(["mv", place, place.with_name(f"renamed-{place.name}")], check=True)
        os.link(place.with_name(f"renamed-{place.name}"), place)
        place.with_name(f"renamed-{place.name}").unlink()
    _remount(volume, before)
    _expect(volume, expected)
    volume.umount()
    volume.tdefs("verify", volume.backing, *volume.unlock)

"""Power cuts around the writing of a manifest: what a crash leaves is never taken for tampering."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.crash import dying
from tests.crash.power.disk.model import Keeps
from tests.crash.power.disk.mounted import PowerCutDisk
from tests.support.children import needs_root
from tests.support.processes import is_alive, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root


def append(volume: Volume) -> None:
    with (volume.mountpoint / "pg_hba.conf").open("ab") as file:
        file.write(b"local all all peer\n" * 1000)
        file.flush()
        os.fsync(file.fileno())


def session(volume: Volume, directory: Path, step: int) -> list[str]:
    """Mounts, appends and unmounts, and dies before a call of writing the manifest; returns what was called."""
    (directory / "step").write_text(str(step))
    volume.program = [sys.executable, str(dying.__file__), str(directory)]
    volume.mount()
    volume.program = [str(TDEFS)]
    append(volume)
    daemons = volume.daemons
    volume.tdefs("umount", volume.mountpoint, check=False)
    assert wait_until(lambda: not any(map(is_alive, daemons)), 30)
    return (directory / "made").read_text().split()


@pytest.mark.parametrize("after", [0, 1], ids=["before its name changes", "before its name is synced"])
def test_a_power_cut_after_a_killed_unmount_brings_back_no_manifest_without_its_journal(
    scratch: Workspace, disk: PowerCutDisk, after: int
) -> None:
    directory = scratch.directory("death")
    disk.switch_on()
    volume = scratch.volume()
    volume.backing = disk.mountpoint / "backing"
    volume.init()
    volume.mount()
    append(volume)
    volume.umount()
    disk.sync()
    made = session(volume, directory, -1)
    session(volume, directory, made.index("rename") + after)
    volume.mount()
    append(volume)
    disk.cut(Keeps.NOTHING, 0)
    volume.kill()
    disk.switch_on()
    volume.mount()
    assert volume.status()["tampering"]["differences"] == []
    assert (volume.mountpoint / "pg_hba.conf").stat().st_size == 4 * 19_000
    volume.umount()

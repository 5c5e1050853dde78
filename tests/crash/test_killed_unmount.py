"""The daemon is killed while an unmount writes the manifest: before each of the calls that change something.

Whatever of it was done, the next mount is sound: nothing is lost, nothing is taken for tampering, and what nobody
has changed is bound still.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tdefs.control import ask
from tdefs.volume.description import read_volume
from tests.crash import dying
from tests.support.children import needs_root
from tests.support.processes import is_alive, wait_until
from tests.support.volume import TDEFS, Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

#: What a step is at which nobody dies.
NEVER = -1


class Cluster:
    """Files on a volume, changed in each session in every way that the manifest tells of."""

    def __init__(self, volume: Volume, directory: Path) -> None:
        self.volume = volume
        self.directory = directory
        self._sessions = 0
        self._expected: dict[str, bytes] = {}
        volume.mount()
        (volume.mountpoint / "base" / "5").mkdir(parents=True)
        self._write("PG_VERSION", b"15\n")
        self._write("base/5/1000", b"untouched" * 2000)
        self.change()
        volume.umount()

    def _write(self, path: str, content: bytes) -> None:
        with (self.volume.mountpoint / path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._expected[path] = content

    def change(self) -> None:
        """One file grows, one is cut, one comes, one goes, and one is renamed over another."""
        self._sessions += 1
        root, number = self.volume.mountpoint, self._sessions
        self._write("base/5/1001", b"grows" * 3000 * number)
        self._write("base/5/1002", b"is cut" * 3000)
        self._write(f"base/5/{2000 + number}", b"comes")
        if number > 1:
            (root / f"base/5/{2000 + number - 1}").unlink()
            del self._expected[f"base/5/{2000 + number - 1}"]
        os.truncate(root / "base/5/1002", 5000)
        self._expected["base/5/1002"] = (b"is cut" * 3000)[:5000]
        self._write("new", b"%d" % number)
        (root / "new").rename(root / "postgresql.auto.conf")
        self._expected["postgresql.auto.conf"] = self._expected.pop("new")

    def mount(self, step: int) -> None:
        """Mounts what will die at a step; all is there, nothing differs, and what was not changed is bound."""
        (self.directory / "step").write_text(str(step))
        untouched = self.volume.data / "base/5/1000"
        stored = untouched.read_bytes()
        os.truncate(untouched, 8192)
        self.volume.program = [sys.executable, str(dying.__file__), str(self.directory)]
        self.volume.mount()
        self.volume.program = [str(TDEFS)]
        untouched.write_bytes(stored)
        status = ask(read_volume(self.volume.backing), "status")
        assert status is not None
        found = status["tampering"]
        assert [one["path"] for one in found["differences"]] == ["base/5/1000"], found
        assert (found["lost"], found["older_than"]) == (None, None)
        for path, content in self._expected.items():
            if path != "base/5/1000":
                assert (self.volume.mountpoint / path).read_bytes() == content, path

    def umount(self) -> list[str]:
        """Dies, unless there are fewer steps; returns the calls that were made until then."""
        daemons = self.volume.daemons
        self.volume.tdefs("umount", self.volume.mountpoint, check=False)
        assert wait_until(lambda: not any(map(is_alive, daemons)), 30)
        return (self.directory / "made").read_text().split()


@pytest.mark.slow
def test_a_daemon_killed_at_any_step_of_an_unmount_leaves_a_sound_volume(scratch: Workspace) -> None:
    volume = scratch.volume("dying")
    volume.init()
    cluster = Cluster(volume, scratch.directory("death"))
    cluster.mount(NEVER)
    cluster.change()
    made = cluster.umount()
    assert made.count("rename") == 1, "the manifest takes its name in one step"
    assert len(made) > 8
    for step, call in enumerate(made):
        print(f"dies before call {step}, {call}")
        cluster.mount(step)
        cluster.change()
        assert cluster.umount() == made[:step]
    cluster.mount(NEVER)
    cluster.umount()
    assert volume.tdefs("accept", "--list", "--volume", volume.backing, *volume.unlock).stdout == ""

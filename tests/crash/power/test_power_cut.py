"""The power is cut under load, on a disk that forgets: no acknowledged commit is lost, and nothing is corrupt."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psycopg
import pytest

from tests.crash.conftest import Dice
from tests.crash.power import broken
from tests.crash.power.disk.mounted import PowerCutDisk
from tests.crash.scene import DISTURBANCES, Scene, Snapshot
from tests.support.volume import TDEFS
from tests.support.workspace import Workspace

#: So many power cuts must be enough to catch what is broken.
MOST_CUTS = 10


@pytest.fixture(scope="module")
def snapshot(workspace: Workspace) -> Iterator[Snapshot]:
    """A cluster on tdefs on a disk that forgets, at rest."""
    yield from _snapshot(workspace, plain=False)


@pytest.fixture(scope="module")
def torn_snapshot(workspace: Workspace) -> Iterator[Snapshot]:
    """The same, made by a tdefs whose pages tear."""
    yield from _snapshot(workspace, plain=False, program=[sys.executable, broken.__file__, "cipher_tears"])


@pytest.fixture(scope="module")
def plain_snapshot(workspace: Workspace) -> Iterator[Snapshot]:
    """The same without tdefs, on a disk where a sync of a new file makes its name durable.

    PostgreSQL relies on that, as ext4, XFS and btrfs do it; on its mounts tdefs itself does it.
    """
    yield from _snapshot(workspace, plain=True)


def _snapshot(workspace: Workspace, *, plain: bool, program: list[str] | None = None) -> Iterator[Snapshot]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    directory = workspace.directory("power")
    disk = PowerCutDisk(directory, journal=plain)
    scene = Scene(workspace, disk=disk, plain=plain)
    scene.volume.program = program or scene.volume.program
    try:
        scene.create()
        yield Snapshot(scene, directory / "begin")
    finally:
        workspace.release(volumes, servers)
        disk.discard()


@pytest.mark.slow
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_acknowledged_commits_survive_a_power_cut(snapshot: Snapshot, disturbance: str, dice: Dice) -> None:
    scene = snapshot.restore()
    rounds = dice.rounds(1)
    for number in range(rounds):
        print(f"cut {number}")
        scene.survive_power_cut(disturbance, dice.random(number))
    print(f"cuts: {rounds}, acknowledged commits: {scene.ledger.commits}")


@pytest.mark.slow
def test_plain_postgres_survives_the_same_power_cuts(plain_snapshot: Snapshot, dice: Dice) -> None:
    """What the disk does to tdefs is not worse than what PostgreSQL alone is made for."""
    scene = plain_snapshot.restore()
    for number in range(dice.rounds(1)):
        random = dice.random(number)
        scene.survive_power_cut(random.choice(DISTURBANCES), random)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [variant.__name__ for variant in broken.VARIANTS])
def test_a_broken_tdefs_is_caught(
    snapshot: Snapshot, workspace: Workspace, variant: str, dice: Dice, request: pytest.FixtureRequest
) -> None:
    """That nothing is found in tdefs means something only if what is wrong would be found."""
    disturbance, tearing = "definitions", 0.5
    if variant == broken.cipher_tears.__name__:
        # it reads only what it wrote; that it can make a cluster shows that it does no harm without a power cut
        disturbance, tearing = "nothing", 1
        snapshot = request.getfixturevalue("torn_snapshot")
    scene = snapshot.restore()
    scene.volume.program = [sys.executable, broken.__file__, variant]
    sync_method = "open_datasync" if variant == broken.durable_writes_are_not_synced.__name__ else "fdatasync"
    # a tdefs that cannot be broken in this way fails at once, and no cut has caught that
    scene.volume.tdefs("--version")
    logged = len(scene.volume.log.read_text())
    try:
        for number in range(MOST_CUTS):
            random = dice.random(number)
            try:
                scene.survive_power_cut(disturbance, random, sync_method=sync_method, tearing=tearing)
            except (AssertionError, psycopg.Error) as caught:
                print(f"caught by cut {number}: {caught}")
                frame = f'File "{broken.__file__}"'
                assert frame not in scene.volume.log.read_text()[logged:], "what breaks it has an error of its own"
                return
    finally:
        scene.volume.program = [str(TDEFS)]
        scene.abandon()
    pytest.fail(f"{MOST_CUTS} cuts have not caught {variant}")

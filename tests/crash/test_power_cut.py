"""The power is cut under load, on a disk that forgets: no acknowledged commit is lost, and nothing is corrupt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.conftest import Dice
from tests.crash.disk.mounted import PowerCutDisk
from tests.crash.scene import DISTURBANCES, Scene, Snapshot
from tests.support.workspace import Workspace


@pytest.fixture(scope="module")
def snapshot(workspace: Workspace) -> Iterator[Snapshot]:
    """A cluster on tdefs on a disk that forgets, at rest."""
    yield from _snapshot(workspace, plain=False)


@pytest.fixture(scope="module")
def plain_snapshot(workspace: Workspace) -> Iterator[Snapshot]:
    """The same without tdefs."""
    yield from _snapshot(workspace, plain=True)


def _snapshot(workspace: Workspace, *, plain: bool) -> Iterator[Snapshot]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    directory = workspace.directory("power")
    disk = PowerCutDisk(directory)
    scene = Scene(workspace, disk=disk, plain=plain)
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

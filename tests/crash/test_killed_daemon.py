"""The daemon is killed under load, again and again: no acknowledged commit is lost, and nothing is corrupt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.conftest import Dice
from tests.crash.scene import DISTURBANCES, Scene
from tests.support.workspace import Workspace


@pytest.fixture(scope="module")
def scene(workspace: Workspace) -> Iterator[Scene]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    scene = Scene(workspace)
    scene.create()
    yield scene
    workspace.release(volumes, servers)


@pytest.mark.slow
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_acknowledged_commits_survive_a_killed_daemon(scene: Scene, disturbance: str, dice: Dice) -> None:
    before = scene.ledger.commits
    rounds = dice.rounds(1)
    for number in range(rounds):
        print(f"kill {number}")
        scene.survive_kill(disturbance, dice.random(number))
    print(f"kills: {rounds}, acknowledged commits: {scene.ledger.commits - before}")
    assert scene.ledger.commits > before

"""Real servers with a load, made once for each PostgreSQL version and shared by the tests on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres.cluster import Cluster, Pair
from tests.support.postgres import VERSIONS
from tests.support.workspace import Workspace


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda version: f"pg{version}")
def version(request: pytest.FixtureRequest) -> str:
    """The PostgreSQL version, for a test on each."""
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="session")
def pair(workspace: Workspace, version: str) -> Iterator[Pair]:
    """An encrypted and a plain cluster, both running and with the load of tests/postgres/load."""
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        pair = Pair(Cluster.encrypted(workspace, version), Cluster.plain(workspace, version))
        for cluster in (pair.encrypted, pair.plain):
            cluster.initdb()
            cluster.load()
        yield pair
        # A clean end is a promise too; after a failure release() does it by force.
        for cluster in (pair.encrypted, pair.plain):
            cluster.server.stop()
        for volume in pair.encrypted.volumes:
            volume.umount()
    finally:
        workspace.release(volumes, servers)


@pytest.fixture
def encrypted(pair: Pair) -> Cluster:
    return pair.encrypted

"""Fixtures for tests on a mount and on a real server; what a failing test's daemons and servers said."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.surroundings import settle
from tests.support.volume import Volume
from tests.support.workspace import Workspace

settle()

# How long an example takes says more about what else runs on the machine than about the code.
settings.register_profile("tdefs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tdefs")

_WORKSPACE = pytest.StashKey[Workspace]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has pytest-xdist keep together what shares a fixture that takes long: a file, or a version's clusters."""
    for item in items:
        group = item.nodeid.partition("::")[0]
        if isinstance(item, pytest.Function) and "pair" in item.fixturenames:
            group = f"the clusters of {item.callspec.params['version']}"
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def workspace(pytestconfig: pytest.Config) -> Iterator[Workspace]:
    """The directory of this run below /var/tmp; at the end nothing in it is mounted, running or left."""
    space = Workspace()
    pytestconfig.stash[_WORKSPACE] = space
    try:
        yield space
    finally:
        space.close()


@pytest.fixture
def scratch(workspace: Workspace) -> Iterator[Workspace]:
    """The workspace; what the test adds to it is stopped and unmounted after the test."""
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    yield workspace
    workspace.release(volumes, servers)


@pytest.fixture
def volume(scratch: Workspace) -> Volume:
    """A volume where everything is encrypted, not mounted."""
    volume = scratch.volume()
    volume.init()
    return volume


@pytest.fixture
def mounted(volume: Volume) -> Path:
    """The mount point of a mounted volume."""
    volume.mount()
    return volume.mountpoint


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the logs to the report of a failed test; nothing secret is ever in them."""
    report = yield
    space = item.config.stash.get(_WORKSPACE, None)
    if space is not None and report.failed:
        for volume in space.volumes:
            report.sections.append((f"the log of the volume {volume.root}", volume.log_tail()))
        for server in space.servers:
            report.sections.append((f"the log of the server on {server.pgdata}", server.log_tail()))
    return report

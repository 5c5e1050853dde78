"""Fixtures for tests on a mount and on a real server; what a failing test's daemons and servers said."""

from __future__ import annotations

from collections import defaultdict
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


#: Seconds that a test marked ``slow`` takes, unless the mark has another figure.
_SLOW_SECONDS = 10
#: A run that takes longer ends with how long each folder took.
_LONG_RUN_SECONDS = 60


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Make a group of the tests that share an expensive fixture, and put the groups that take longest first.

    pytest-xdist runs each group on one worker, and starts the groups in this order.
    """
    seconds: dict[str, float] = {}
    groups = {}
    for item in items:
        group = groups[item] = _group_of(item)
        item.add_marker(pytest.mark.xdist_group(group))
        seconds[group] = seconds.get(group, 0) + _seconds_of(item)
    items.sort(key=lambda item: -seconds[groups[item]])


def _group_of(item: pytest.Item) -> str:
    """Return the name of the group of a test: its file, or the clusters of a PostgreSQL version."""
    if isinstance(item, pytest.Function) and "pair" in item.fixturenames:
        return f"the clusters of {item.callspec.params['version']}"
    return item.nodeid.partition("::")[0]


def _seconds_of(item: pytest.Item) -> float:
    """Return how long a test takes: what its mark ``slow`` says, and 0 without the mark."""
    mark = item.get_closest_marker("slow")
    return 0 if mark is None else mark.kwargs.get("seconds", _SLOW_SECONDS)


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
    """Add the logs to the report of a failed test; nothing secret is ever in them."""
    report = yield
    space = item.config.stash.get(_WORKSPACE, None)
    if space is not None and report.failed:
        for volume in space.volumes:
            report.sections.append((f"the log of the volume {volume.root}", volume.log_tail()))
        for server in space.servers:
            report.sections.append((f"the log of the server on {server.pgdata}", server.log_tail()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long each folder of tests took, all workers together; nothing after a short run."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folders = Path(report.nodeid.partition("::")[0]).parts[1:-1]
                seconds["/".join(folders[:2])] += report.duration
    if sum(seconds.values()) < _LONG_RUN_SECONDS:
        return
    terminalreporter.section("minutes of one worker, by folder")
    for folder, took in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{took / 60:6.1f}  {folder}")

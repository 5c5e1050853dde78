"""What the tests of the disk itself and those of single files on it share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.power.disk.mounted import PowerCutDisk
from tests.support.workspace import Workspace


@pytest.fixture
def disk(workspace: Workspace) -> Iterator[PowerCutDisk]:
    """A disk that is not switched on yet."""
    disk = PowerCutDisk(workspace.directory("disk"))
    try:
        yield disk
    finally:
        disk.discard()

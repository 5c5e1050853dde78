"""Fixtures of the tests without a mount: a small volume, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.offline_volumes import Command, SmallVolume


@pytest.fixture
def small(tmp_path: Path) -> SmallVolume:
    """A volume where nothing is plain."""
    return SmallVolume(tmp_path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line."""
    return Command(capsys)

"""A volume that is served without a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served_volume import ServedVolume


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedVolume]:
    """A volume in which everything is encrypted, with the directories of two databases."""
    (tmp_path / "data").mkdir()
    volume = ServedVolume(tmp_path / "data")
    volume.mkdirs("base/16384", "base/16400", "pg_wal", "global")
    yield volume
    volume.close()

"""A command with actions, run again and again on one volume."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tdefs.errors import TdefsError
from tests.support.offline_volumes import Command, SmallVolume


class VolumeCommand:
    """The command of ``module``, such as ``tdefs key``, on one volume."""

    module: ModuleType

    def __init__(self, small: SmallVolume, command: Command) -> None:
        self.small = small
        self._command = command

    def run(self, action: str, *words: str | Path) -> str:
        """Return what it prints."""
        return self._command.run(self.module, action, *words, "--volume", self.small.volume.backing)[1]

    def refused(self, action: str, *words: str | Path) -> TdefsError:
        """Return the error with which it leaves the keystore as it is."""
        before = self.small.volume.keystore.read_bytes()
        with pytest.raises(TdefsError) as caught:
            self.run(action, *words)
        assert self.small.volume.keystore.read_bytes() == before
        return caught.value

"""Fixtures of the tests of commands that change a keystore: a small volume, without a mount."""

from __future__ import annotations

from tests.unit.offline.conftest import command, small

__all__ = ["command", "small"]

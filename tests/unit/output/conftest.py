"""Fixtures of the tests of what becomes of the output: a small volume, without a mount."""

from __future__ import annotations

from tests.unit.offline.conftest import command, small

__all__ = ["command", "small"]

"""Which files of a mounted volume are not as the last unmount left them, for people and for programs; pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file that is not as the last unmount left it."""

    path: str
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Tampering:
    """Which files of a volume are not as the last unmount left them."""

    setting: str
    """``refuse`` or ``report``."""
    counter: int | None = None
    """The manifest's number; ``None`` where nothing is bound."""
    lost: str | None = None
    """What is wrong with the manifest, if there must be one and there is none."""
    older_than: int | None = None
    """The newest counter that the keystore knows, if that of the manifest is older."""
    unbound: int = 0
    """How many files a session without a clean end has left unbound."""
    count: int = 0
    """How many files differ; ``differences`` has the first of them."""
    differences: tuple[ChangedFile, ...] = ()

"""What of a mounted volume is not as the last unmount left it, for people and for programs; pure."""

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
    """What of a volume is not as the last unmount left it."""

    setting: str
    """``refuse`` or ``report``."""
    counter: int | None = None
    """The manifest's number; ``None`` where nothing is bound."""
    lost: str | None = None
    """What is wrong where a manifest must be and is not."""
    older_than: int | None = None
    """The newest counter that the keystore knows, where that of the manifest is older."""
    unbound: int = 0
    """How many files a session without a clean end has left unbound."""
    count: int = 0
    """How many files differ, of which ``differences`` has the first."""
    differences: tuple[ChangedFile, ...] = ()

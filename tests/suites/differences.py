"""What differs from ext4 and is known: docs/FILE-SYSTEM.md has the reason of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.suites.exercise import Exercise, Outcome


@dataclass(frozen=True)
class Known:
    """An exercise whose outcome on a mount is not that on ext4."""

    suite: str
    name: str
    #: The outcome on the mount, as a word.
    word: str
    #: What each note that only one of the two has must match.
    notes: str
    #: What to look for in docs/FILE-SYSTEM.md.
    reason: str

    def covers(self, exercise: Exercise, plain: Outcome, mount: Outcome) -> bool:
        """Return whether this is the difference between two outcomes."""
        return (
            (exercise.suite, exercise.name, mount.word) == (self.suite, self.name, self.word)
            and plain.word in ("ok", "failed")
            and all(re.search(self.notes, note) for note in plain.notes ^ mount.notes)
        )


_EMULATED = "`fallocate(2)`"
KNOWN: Sequence[Known] = (
    Known("stress-ng", "fiemap", "not supported", "FIEMAP not supported", "FIEMAP"),
    Known("stress-ng", "fsize", "ok", "fallocate unexpectedly succeeded|expected a SIGXFSZ signal", _EMULATED),
    Known("stress-ng", "xattr", "not supported", "xattr", "extended attributes"),
    Known("fio", "falloc", "failed", "Operation not supported", _EMULATED),
    Known("fio", "O_DIRECT psync, randwrite, 1000", "ok", "Invalid argument", "`O_DIRECT` takes any alignment"),
    Known("python", "its own tests", "ok", "[Xx]attr|ExtendedAttribute", "extended attributes"),
)


def reason(exercise: Exercise, plain: Outcome, mount: Outcome) -> str | None:
    """Return why the outcomes differ; None if that is not known."""
    return next((known.reason for known in KNOWN if known.covers(exercise, plain, mount)), None)

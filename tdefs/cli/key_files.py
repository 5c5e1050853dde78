"""Which files of a volume use a data key."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

from tdefs.fs.offline import UNREADABLE, describe_all
from tdefs.text import printable
from tdefs.volume import Volume


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Paths of the files that use some rounds of a data key, and of those that could not be looked at."""

    paths: list[str]
    unknown: list[str]

    @classmethod
    def scan(cls, volume: Volume, name: str, rounds: Collection[int]) -> Self:
        """Look at every file of *volume*.

        :raises OSError: a directory cannot be read.
        """
        paths, unknown = [], []
        for found in describe_all(volume):
            if found.data_key == name and found.round in rounds:
                paths.append(found.path)
            elif found.state == UNREADABLE:
                unknown.append(found.path)
        return cls(paths, unknown)

    def shown(self, most: int) -> Iterator[str]:
        """Yield the paths for people, and how many more there are."""
        yield from map(printable, self.paths[:most])
        if len(self.paths) > most:
            yield f"and {len(self.paths) - most} more: 'tdefs ls' lists every file with its key and round"

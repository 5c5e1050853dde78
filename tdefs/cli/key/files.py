"""Which files of volumes use a data key."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from tdefs.offline.reader import UNREADABLE, describe_all
from tdefs.text import printable
from tdefs.volume.description import Volume


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Paths of the files that use some rounds of a data key, and of those that could not be read.

    They are relative to the backing directory, unless there are several.
    """

    paths: list[str]
    unknown: list[str]

    @classmethod
    def scan(cls, volumes: Sequence[Volume], name: str, rounds: Collection[int]) -> Self:
        """Return the files of *volumes* that use the rounds; every file is read.

        :raises OSError: a directory cannot be read.
        """
        paths, unknown = [], []
        for volume in volumes:
            prefix = f"{volume.data}/" if len(volumes) > 1 else ""
            for found in describe_all(volume):
                if found.data_key == name and found.round in rounds:
                    paths.append(prefix + found.path)
                elif found.state == UNREADABLE:
                    unknown.append(prefix + found.path)
        return cls(paths, unknown)

    def shown(self, most: int) -> Iterator[str]:
        """Yield the paths for people, and the number of those that are not shown."""
        yield from map(printable, self.paths[:most])
        if len(self.paths) > most:
            yield f"and {len(self.paths) - most} more: 'tdefs ls' lists every file with its key and round"

"""Ways to damage a file of a backing directory, as a disk, a person or an attacker would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

HEADER = 8192


@dataclass(frozen=True)
class Scene:
    """What a damage may use: the volume's files, and those of another volume under the same paths."""

    random: Random
    data: Path
    paths: list[str]
    other_volume: Path

    def another(self, path: str) -> Path:
        """Another file of the volume."""
        return self.data / self.random.choice([other for other in self.paths if other != path])


Damage = Callable[[Scene, str], None]


def _flip(path: Path, random: Random, first: int, last: int, most: int = 3) -> None:
    """Change some bits between two offsets."""
    with path.open("r+b") as file:
        for _ in range(random.randint(1, most)):
            at = random.randrange(first, last)
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << random.randrange(8)]), at)


def _flip_in(first: int, last: int | None) -> Damage:
    def damage(scene: Scene, path: str) -> None:
        size = (scene.data / path).stat().st_size
        end = min(size, last if last is not None else size)
        if first < end:
            _flip(scene.data / path, scene.random, first, end)

    return damage


def _flip_at_the_end(scene: Scene, path: str) -> None:
    size = (scene.data / path).stat().st_size
    if size:
        _flip(scene.data / path, scene.random, max(0, size - 32), size)


def _overwrite(content: Callable[[Random, int], bytes]) -> Damage:
    """Change a stretch anywhere."""

    def damage(scene: Scene, path: str) -> None:
        size = (scene.data / path).stat().st_size
        if size:
            at = scene.random.randrange(size)
            length = min(size - at, scene.random.choice((1, 16, 512, 4096, 8192, 20_000)))
            with (scene.data / path).open("r+b") as file:
                os.pwrite(file.fileno(), content(scene.random, length), at)

    return damage


def _truncate(scene: Scene, path: str) -> None:
    size = (scene.data / path).stat().st_size
    near = scene.random.choice((0, 1, 7, 16, 200, 512, 4096, HEADER, HEADER + 16, 2 * HEADER, size))
    length = (
        near + scene.random.randint(-17, 17) if scene.random.random() < 0.6 else scene.random.randrange(size + 1)
    )
    os.truncate(scene.data / path, max(0, min(length, size)))


def _lengthen(scene: Scene, path: str) -> None:
    size = (scene.data / path).stat().st_size
    added = scene.random.choice((1, 15, 16, 17, 100, 512, 8191, 8192, 8209, 1 << 20))
    with (scene.data / path).open("r+b") as file:
        os.pwrite(file.fileno(), scene.random.choice((bytes(added), scene.random.randbytes(added))), size)


def _exchange(scene: Scene, path: str) -> None:
    """By their names, as mv would."""
    one, two = scene.data / path, scene.another(path)
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def _copy_over(scene: Scene, path: str) -> None:
    shutil.copyfile(scene.another(path), scene.data / path)


def _page_of_another(scene: Scene, path: str) -> None:
    """A page of another file, or of another place in the same one."""
    source = scene.another(path) if scene.random.random() < 0.5 else scene.data / path
    pages = [place.stat().st_size // HEADER for place in (source, scene.data / path)]
    if min(pages) > 1:
        with source.open("rb") as file:
            page = os.pread(file.fileno(), HEADER, scene.random.randrange(1, pages[0]) * HEADER)
        with (scene.data / path).open("r+b") as file:
            os.pwrite(file.fileno(), page, scene.random.randrange(1, pages[1]) * HEADER)


def _from_another_volume(scene: Scene, path: str) -> None:
    source = scene.other_volume / path
    if source.is_file():
        shutil.copyfile(source, scene.data / path)


def _replace(content: Callable[[Random, bytes], bytes]) -> Damage:
    def damage(scene: Scene, path: str) -> None:
        place = scene.data / path
        place.write_bytes(content(scene.random, place.read_bytes()))

    return damage


def _remove(scene: Scene, path: str) -> None:
    (scene.data / path).unlink()


DAMAGES: dict[str, Damage] = {
    "flipped bits in the header record": _flip_in(0, 512),
    "flipped bits in the magic or the volume id": _flip_in(0, 32),
    "flipped bits in the header page": _flip_in(512, HEADER),
    "flipped bits in the data": _flip_in(HEADER, None),
    "flipped bits anywhere": _flip_in(0, None),
    "flipped bits at the end": _flip_at_the_end,
    "a stretch of random bytes": _overwrite(lambda random, size: random.randbytes(size)),
    "a stretch of zeros": _overwrite(lambda _, size: bytes(size)),
    "truncated": _truncate,
    "longer": _lengthen,
    "exchanged": _exchange,
    "another file's content": _copy_over,
    "another page": _page_of_another,
    "another volume's file": _from_another_volume,
    "all random bytes": _replace(lambda random, _: random.randbytes(random.choice((1, 40, 300, 8192, 30_000)))),
    "a text": _replace(lambda random, _: b"put here by hand\n" * random.choice((1, 1000))),
    "all zero": _replace(lambda random, old: bytes(random.choice((1, 100, 8192, 8193, len(old))))),
    "a header alone": _replace(lambda _, old: old[:HEADER]),
    "a record alone": _replace(lambda _, old: old[:512]),
    "a header of zeros": _replace(lambda _, old: bytes(HEADER) + old[HEADER:]),
    "a record of zeros": _replace(lambda _, old: bytes(512) + old[512:]),
    "emptied": _replace(lambda *_: b""),
    "removed": _remove,
}

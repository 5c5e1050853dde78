"""Unlocking a volume reads its keystore once, and the history of that once, however long they are."""

from __future__ import annotations

from collections import Counter

import pytest

from tdefs.cli import accept, verify
from tdefs.private import OwnDirectory
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of tdefs's own files was read, by its name."""
    counted: Counter[str] = Counter()
    read = OwnDirectory.read
    whole = OwnDirectory.read_whole

    def counting_read(self: OwnDirectory, name: str, *arguments: object, **options: object) -> bytes:
        counted[name] += 1
        return read(self, name, *arguments, **options)  # type: ignore[arg-type]

    def counting_whole(self: OwnDirectory, name: str, most: int) -> bytes:
        counted[name] += 1
        return whole(self, name, most)

    monkeypatch.setattr(OwnDirectory, "read", counting_read)
    monkeypatch.setattr(OwnDirectory, "read_whole", counting_whole)
    return counted


def test_keystore_and_history_are_read_once(small: SmallVolume, command: Command, reads: Counter[str]) -> None:
    small.encrypt("base/5/16384", b"content")
    small.mounted_at("/mnt", clean=True)
    volume, name = small.volume.backing, small.volume.keystore.name
    for module, words in ((verify, (volume,)), (accept, ("--volume", volume, "--list"))):
        reads.clear()
        command.run(module, *words, "--key-command", KEY_COMMAND)
        assert (reads[name], reads[f"{name}.history"]) == (1, 1)

"""Which volume a command means. Covers tdefs/cli/common/place.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tdefs.cli.common import place
from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import Mount
from tests.support.offline_volumes import SmallVolume


def arguments(*words: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    place.add_place(parser)
    parser.add_argument("--config", type=Path)
    return parser.parse_args([str(word) for word in words])


def mounts(monkeypatch: pytest.MonkeyPatch, *backings: Path) -> None:
    monkeypatch.setattr(
        place, "mounts_of", lambda _: [Mount(Path("/mnt"), backing, "0:1", 0) for backing in backings]
    )


def test_named_volume_is_meant(small: SmallVolume) -> None:
    assert place.volume_of(arguments("--volume", small.volume.backing)).volume_id == small.volume.volume_id


def test_only_volume_of_the_configuration_or_of_the_host_is_meant(
    small: SmallVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = small.volume.backing
    config = tmp_path / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {backing}:\n    mountpoint: /mnt\n")
    mounts(monkeypatch)
    assert place.volume_of(arguments("--config", config)).backing == backing
    config.write_text("version: 1\nvolumes: {}\n")
    mounts(monkeypatch, backing, backing)
    assert place.volume_of(arguments("--config", config)).backing == backing


def test_nothing_is_guessed_where_there_are_several_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tdefs.yaml"
    config.write_text("version: 1\nvolumes: {}\n")
    for backings in ((), (Path("/srv/a"), Path("/srv/b"))):
        mounts(monkeypatch, *backings)
        with pytest.raises(TdefsError) as caught:
            place.volume_of(arguments("--config", config))
        assert caught.value.exit_code == Exit.USAGE
        assert f"there are {len(backings)}" in caught.value.detail

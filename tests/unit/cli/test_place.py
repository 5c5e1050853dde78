"""Which volume a command means. Covers tdefs/cli/common/place.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tdefs.cli.common import place
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import build
from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import Mount
from tests.support.offline_volumes import SmallVolume


def choice(*words: str | Path) -> place.VolumeChoice:
    parser = argparse.ArgumentParser()
    place.add_volume(parser)
    parser.add_argument("--config", type=Path)
    values = vars(parser.parse_args([str(word) for word in words]))
    return build(place.VolumeChoice, values, Invocation(config_file=values["config"]))


def mounts(monkeypatch: pytest.MonkeyPatch, *backings: Path) -> None:
    monkeypatch.setattr(
        place, "mounts_of", lambda _: [Mount(Path("/mnt"), backing, "0:1", 0) for backing in backings]
    )


def test_named_volume_is_meant(small: SmallVolume) -> None:
    assert choice(small.volume.backing).find().volume_id == small.volume.volume_id
    both = choice(small.volume.backing, "--volume", small.volume.backing)
    assert both.find().volume_id == small.volume.volume_id
    assert choice("--volume", small.volume.backing).find().volume_id == small.volume.volume_id


def test_only_volume_of_the_configuration_or_of_the_host_is_meant(
    small: SmallVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing = small.volume.backing
    config = tmp_path / "tdefs.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {backing}:\n    mountpoint: /mnt\n")
    mounts(monkeypatch)
    assert choice("--config", config).find().backing == backing
    config.write_text("version: 1\nvolumes: {}\n")
    mounts(monkeypatch, backing, backing)
    assert choice("--config", config).find().backing == backing


def test_nothing_is_guessed_where_there_are_several_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "tdefs.yaml"
    config.write_text("version: 1\nvolumes: {}\n")
    for backings in ((), (Path("/srv/a"), Path("/srv/b"))):
        mounts(monkeypatch, *backings)
        with pytest.raises(TdefsError) as caught:
            choice("--config", config).find()
        assert caught.value.exit_code == Exit.USAGE
        assert f"there are {len(backings)}" in caught.value.detail


def test_two_volumes_are_a_usage_error(small: SmallVolume, tmp_path: Path) -> None:
    with pytest.raises(TdefsError) as caught:
        choice(small.volume.backing, "--volume", tmp_path).find()
    assert caught.value.exit_code == Exit.USAGE
    assert str(tmp_path) in caught.value.detail


def test_a_mount_is_found_by_its_backing_directory_too(
    small: SmallVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(Path("/mnt"), small.volume.backing, "0:1", 0)
    monkeypatch.setattr(place, "tdefs_mounts", lambda: [mount])
    assert choice(small.volume.backing).find_mount() == mount
    with pytest.raises(TdefsError) as caught:
        choice(small.volume.backing.parent).find_mount()
    assert caught.value.exit_code == Exit.NOT_MOUNTED


def test_what_ends_a_mount_must_be_named(small: SmallVolume) -> None:
    with pytest.raises(TdefsError) as caught:
        choice().required()
    assert caught.value.exit_code == Exit.USAGE
    assert choice(small.volume.backing).required() == small.volume.backing

"""What ``tdefs ls`` tells. Covers tdefs/cli/ls.py and tdefs/cli/common/output.py."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from tdefs.cli import ls
from tdefs.cli.common import place
from tdefs.cli.common.output import print_line
from tdefs.mounts.known import Mount
from tests.support.offline_volumes import Command, SmallVolume

WRONG_CHECKSUM = "the header is damaged: its checksum does not match"


def fill(small: SmallVolume) -> None:
    small.encrypt("base/5/1259", b"x" * 8192)
    small.encrypt("base/5/16384", b"x" * 100, key="dk_2")
    small.plain("empty", b"")
    small.encrypt("wiped", b"x")
    small.damage("wiped", 40)


def test_table_has_one_row_for_each_file(small: SmallVolume, command: Command) -> None:
    fill(small)
    code, output = command.run(ls, small.volume.backing)
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["path", "kind", "encrypted", "data", "key", "round", "algorithm", "size"],
        ["empty", "other", "empty", "-", "-", "-", "0"],
        ["wiped", "other", "damaged", "-", "-", "-", "-", *WRONG_CHECKSUM.split()],
        ["base/5/1259", "catalog", "yes", "dk_1", "1", "aes-256-xts", "8192"],
        ["base/5/16384", "relation", "yes", "dk_2", "1", "aes-256-xts", "100"],
    ]


def test_json_has_stable_keys(small: SmallVolume, command: Command) -> None:
    fill(small)
    found = command.json(ls, small.volume.backing)
    assert found[3] == {
        "path": "base/5/16384",
        "kind": "relation",
        "encrypted": True,
        "state": "encrypted",
        "data_key": "dk_2",
        "round": 1,
        "algorithm": "aes-256-xts",
        "size": 100,
        "stored_size": 8192 + 112 + 4,
    }
    assert found[1] == {
        "path": "wiped",
        "kind": "other",
        "encrypted": False,
        "state": "damaged",
        "data_key": None,
        "round": None,
        "algorithm": None,
        "size": None,
        "stored_size": 8192 + 16 + 1,
        "error": WRONG_CHECKSUM,
    }


def test_plain_files_are_told(tmp_path: Path, command: Command) -> None:
    small = SmallVolume(tmp_path, plain_files=True)
    small.plain("postgresql.conf", b"port = 5432\n")
    (found,) = command.json(ls, small.volume.backing)
    assert (found["kind"], found["encrypted"], found["state"], found["size"]) == (
        "configuration",
        False,
        "plain",
        12,
    )


def test_no_key_is_needed(small: SmallVolume, command: Command) -> None:
    fill(small)
    small.volume.keystore.unlink()
    assert len(command.json(ls, small.volume.backing)) == 4


def test_mount_point_leads_to_its_backing_directory(
    small: SmallVolume, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(small)
    monkeypatch.setattr(place, "find_mount", lambda mountpoint: Mount(mountpoint, small.volume.backing, "0:42"))
    assert len(command.json(ls, "/mnt/point")) == 4


def test_volume_without_files_has_an_empty_list(small: SmallVolume, command: Command) -> None:
    assert command.json(ls, small.volume.backing) == []
    assert command.run(ls, small.volume.backing)[1].split()[0] == "path"


def test_hostile_file_name_cannot_break_the_table(small: SmallVolume, command: Command) -> None:
    names = [os.fsdecode(b"a\xff"), "b\nc", "d\x1b[2Je"]
    for name in names:
        small.encrypt(name, b"")
    _, output = command.run(ls, small.volume.backing)
    assert [line.split()[0] for line in output.splitlines()[1:]] == ["a\\udcff", "b\\nc", "d\\x1b[2Je"]
    assert [found["path"] for found in command.json(ls, small.volume.backing)] == names


def test_terminal_that_cannot_express_a_name_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    print_line("straße")
    output.flush()
    output.seek(0)
    assert output.read() == "stra\\xdfe\n"

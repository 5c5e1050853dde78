"""Keys and protectors that change under a mount: no restart, no remount, no file that breaks."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.volume import Volume


def listed(volume: Volume) -> dict[str, int]:
    """The round of every encrypted file."""
    files = json.loads(volume.tdefs("ls", volume.backing, "--json").stdout)
    return {file["path"]: file["round"] for file in files if file["encrypted"]}


def key(volume: Volume, *words: str, check: bool = True) -> Any:
    return volume.tdefs("key", *words, "--volume", volume.mountpoint, *volume.unlock, check=check)


def status(volume: Volume) -> Any:
    return json.loads(volume.tdefs("status", volume.mountpoint, "--json").stdout)


def counts(volume: Volume) -> dict[tuple[str, int], tuple[str, int]]:
    return {(one["name"], one["round"]): (one["state"], one["files"]) for one in status(volume)["data_keys"]}


def test_life_of_a_data_key_under_a_mount(volume: Volume, mounted: Path) -> None:
    old, new = mounted / "old", mounted / "new"
    old.write_bytes(b"old" * 5000)
    key(volume, "rotate", "dk_1")
    new.write_bytes(b"new" * 5000)
    assert listed(volume) == {"old": 1, "new": 2}
    assert counts(volume) == {("dk_1", 1): ("active", 1), ("dk_1", 2): ("active", 1)}

    revoked = key(volume, "revoke", "dk_1", "--round", "1").stdout
    assert revoked.splitlines()[-1].strip() == "old"
    assert counts(volume)["dk_1", 1] == ("revoked", 1)
    assert old.read_bytes() == b"old" * 5000
    refused = key(volume, "destroy", "dk_1", "--round", "1", check=False)
    assert refused.returncode == 63
    key(volume, "destroy", "dk_1", "--round", "1", "--destroy-files-of", "dk_1")

    with pytest.raises(OSError, match="Required key not available") as caught:
        old.read_bytes()
    assert caught.value.errno == errno.ENOKEY
    assert counts(volume)["dk_1", 1] == ("destroyed", 1)
    assert status(volume)["files"]["unreadable"] == 1
    assert status(volume)["files"]["encrypted"] == 1
    assert new.read_bytes() == b"new" * 5000
    assert sorted(path.name for path in mounted.iterdir()) == ["new", "old"]
    (mounted / "newer").write_bytes(b"newer")
    old.unlink()
    assert listed(volume) == {"new": 2, "newer": 2}

    volume.umount()
    volume.mount()
    assert (new.read_bytes(), (mounted / "newer").read_bytes()) == (b"new" * 5000, b"newer")


def test_master_key_and_secret_change_under_load(volume: Volume, mounted: Path) -> None:
    stop = threading.Event()
    written: list[bytes] = []

    def write() -> None:
        while not stop.is_set():
            content = f"{len(written)}\n".encode() * 1000
            (mounted / f"file{len(written)}").write_bytes(content)
            written.append(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        key(volume, "rotate-master")
        new_file = volume.root / "key2"
        new_file.write_text("feed" * 16)
        words = ["protector", "change", "pr_1", "--volume", str(volume.backing), *volume.unlock]
        volume.tdefs(*words, "--new-key-command", f"cat {new_file}")
        new_file.rename(volume.key_file)
        key(volume, "rotate-master")
    finally:
        stop.set()
        writer.join()
    assert len(written) > 0
    volume.umount()
    volume.mount()
    for number, content in enumerate(written):
        assert (mounted / f"file{number}").read_bytes() == content
    shown = json.loads(volume.tdefs("key", "list", "--volume", volume.backing, "--json").stdout)
    assert [one["name"] for one in shown["master_keys"] if one["current"]] == ["mk_3"]

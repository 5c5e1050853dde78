"""A copy of a volume is not that volume until tdefs is told so: nothing done to it takes keys from the original.

Covers tdefs/volume/registry.py, tdefs/cli/common/keystore_users.py, tdefs/cli/volume/command.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli.common import daemon_keys
from tdefs.cli.key import command as key
from tdefs.errors import Exit, TdefsError
from tests.support.children import NOBODY, needs_root
from tests.support.mounts import LET_GO_OF_OTHERS
from tests.support.offline_volumes import Command
from tests.support.volume import LIMIT, TDEFS, Volume
from tests.support.workspace import Workspace

CONTENT = b"of the original\n" * 1000
FILE = "pg_notes"

#: What takes something away: a key from files, or a secret by which some volume may be opened.
TAKING = {
    "revoke": ("key", "revoke", "dk_1", "--round", "1"),
    "destroy": ("key", "destroy", "dk_1", "--round", "1"),
    "rotate-master": ("key", "rotate-master"),
    "protector-change": ("protector", "change", "pr_1", "--new-key-command", "printf %%064d 7"),
    "protector-remove": ("protector", "remove", "pr_2"),
    "auto-open-enable": ("auto-open", "enable", "--host-key"),
    "auto-open-disable": ("auto-open", "disable"),
}
#: And what only adds.
ADDING = {
    "create": ("key", "create", "dk_2"),
    "rotate": ("key", "rotate", "dk_1"),
    "protector-add": ("protector", "add", "--new-key-command", "printf %%064d 8"),
    "protector-label": ("protector", "label", "pr_1", "new"),
}


def change(volume: Volume, *words: str | Path, code: Exit = Exit.OK, place: Path | None = None) -> str:
    """Runs a command with the volume and its secret; returns what it prints, and checks its exit code."""
    config = ("--config", volume.root / "tdefs.yaml") if (volume.root / "tdefs.yaml").exists() else ()
    done = volume.tdefs(*words, "--volume", place or volume.backing, *config, *volume.unlock, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def say(volume: Volume, action: str, *words: str | Path, code: Exit = Exit.OK) -> str:
    """Runs ``tdefs volume ACTION`` on the volume's backing directory."""
    done = volume.tdefs("volume", action, volume.backing, *words, *volume.unlock, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def listed(volume: Volume) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        volume.tdefs("volume", "list", "--volume", volume.backing, "--json").stdout
    )
    return found


def copied(scratch: Workspace, volume: Volume) -> Volume:
    """``cp -a`` of the backing directory, with a mount point of its own; it remembers the original's keystore."""
    copy = scratch.volume("copy")
    copy.backing.rmdir()
    subprocess.run(["cp", "-a", volume.backing, copy.backing], check=True)
    copy.keystore, copy.key_file = volume.keystore, volume.key_file
    return copy


def in_namespace(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a shell script with mounts of its own."""
    alone = f"(set -- /none; {LET_GO_OF_OTHERS}) || true"
    command = ["unshare", "-m", "sh", "-ec", f"{alone}\n{script}", "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def tdefs_in(script: str, words: Sequence[object]) -> str:
    return f"{script}; exec {shlex.join([str(TDEFS), *map(str, words)])}"


@pytest.fixture
def filled(volume: Volume) -> None:
    """There is a file in the volume, which is not mounted."""
    volume.mount()
    (volume.mountpoint / FILE).write_bytes(CONTENT)
    volume.umount()


@pytest.fixture
def copy(scratch: Workspace, volume: Volume) -> Volume:
    return copied(scratch, volume)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("original", ["mounted", "unmounted", "missing"])
def test_a_copy_destroys_none_of_the_originals_keys(volume: Volume, copy: Volume, original: str) -> None:
    if original == "mounted":
        volume.mount()
    away = volume.root / "away"
    if original == "missing":
        volume.backing.rename(away)
    before = volume.keystore.read_bytes()
    copy.mount()
    (copy.mountpoint / FILE).unlink()
    for words in (("rotate", "dk_1"), ("revoke", "dk_1", "--round", "1"), ("destroy", "dk_1", "--round", "1")):
        said = change(copy, "key", *words, code=Exit.VOLUME_NOT_REGISTERED, place=copy.mountpoint)
        assert "became unreadable" not in said
        assert f"tdefs volume copied {copy.backing}" in said
        assert (f"tdefs volume moved {copy.backing}" in said) == (original == "missing")
        assert (f'vol_1 is at "{volume.backing}"' in said) == (original != "missing")
    copy.umount()
    assert volume.keystore.read_bytes() == before
    if original == "missing":
        away.rename(volume.backing)
    if original != "mounted":
        volume.mount()
    assert (volume.mountpoint / FILE).read_bytes() == CONTENT


def test_no_command_changes_the_originals_keystore_from_a_copy(volume: Volume, copy: Volume) -> None:
    change(volume, "protector", "add", "--new-key-command", "printf %%064d 9")
    change(volume, "key", "rotate", "dk_1")
    before = volume.keystore.read_bytes()
    for words in (*TAKING.values(), *ADDING.values()):
        change(copy, *words, code=Exit.VOLUME_NOT_REGISTERED)
        assert volume.keystore.read_bytes() == before, words
    # who tried is known afterwards
    records = json.loads(change(volume, "key", "history", "--json"))["records"]
    refused = [one["what"]["error"] for one in records if one["event"].endswith("refused")]
    assert refused == ["VOLUME_NOT_REGISTERED"] * len(TAKING | ADDING)


@pytest.mark.usefixtures("filled")
def test_a_copy_can_be_read_and_says_what_to_do(volume: Volume, copy: Volume) -> None:
    warning = "does not know volume"
    reading: tuple[tuple[str | Path, ...], ...] = (
        ("ls", copy.backing),
        ("cat", FILE, "--volume", copy.backing, *copy.unlock),
        ("verify", copy.backing, *copy.unlock),
        ("key", "list", "--volume", copy.backing),
        ("key", "show", "dk_1", "--volume", copy.backing),
        ("mount", copy.backing, copy.mountpoint, *copy.unlock),
    )
    for words in reading:
        said = copy.tdefs(*words).stderr
        assert said.count(warning) == 1, words
        assert f"tdefs volume copied {copy.backing}" in said
        # and of the volume itself nothing is said
        others = [str(word).replace(str(copy.root), str(volume.root)) for word in words]
        assert warning not in volume.tdefs(*others).stderr
    assert (copy.mountpoint / FILE).read_bytes() == CONTENT
    (copy.mountpoint / "more").write_bytes(CONTENT)
    found = json.loads(copy.tdefs("doctor", copy.mountpoint, "--json", check=False).stdout)
    assert any(warning in one["what"] for one in found)


def test_a_renamed_volume_needs_no_word(volume: Volume) -> None:
    new = volume.root / "renamed"
    volume.backing.rename(new)
    old, volume.backing = volume.backing, new
    volume.mount()
    assert "was renamed" in change(volume, "key", "rotate", "dk_1", place=volume.mountpoint)
    assert [(one["path"], one["seen"]) for one in listed(volume)] == [(str(new), True)]
    assert "was renamed" not in change(volume, "key", "rotate-master")
    # what is made of it afterwards at the old place is a copy
    volume.umount()
    subprocess.run(["cp", "-a", new, old], check=True)
    volume.backing = old
    change(volume, "key", "rotate", "dk_1", code=Exit.VOLUME_NOT_REGISTERED)


def test_a_restored_volume_is_moved_once_the_old_one_is_gone(volume: Volume, copy: Volume) -> None:
    said = say(copy, "moved", code=Exit.VOLUME_REGISTERED)
    assert f'still at "{volume.backing}"' in said
    volume.backing.rename(volume.root / "away")
    change(copy, "key", "rotate", "dk_1", code=Exit.VOLUME_NOT_REGISTERED)
    copy.mount()
    say(copy, "moved")
    for words in (("rotate", "dk_1"), ("rotate-master",)):
        change(copy, "key", *words)
    assert [(one["id"], one["path"]) for one in listed(copy)] == [("vol_1", str(copy.backing))]
    # the old one, should it come back, is the copy now
    (volume.root / "away").rename(volume.backing)
    change(volume, "key", "rotate", "dk_1", code=Exit.VOLUME_NOT_REGISTERED)


def test_a_volume_restored_in_its_place_is_told_from_the_one_before(volume: Volume, copy: Volume) -> None:
    before = volume.root / "before"
    volume.backing.rename(before)
    subprocess.run(["cp", "-a", copy.backing, volume.backing], check=True)
    for place in (volume.backing, before):
        change(volume, "key", "rotate", "dk_1", code=Exit.VOLUME_NOT_REGISTERED, place=place)
    say(volume, "add", code=Exit.VOLUME_REGISTERED)
    say(volume, "moved")
    change(volume, "key", "rotate", "dk_1")
    change(volume, "key", "rotate", "dk_1", code=Exit.VOLUME_NOT_REGISTERED, place=before)


@needs_root
def test_the_same_directory_by_another_path_is_no_copy(volume: Volume) -> None:
    link, bind = volume.root / "link", volume.root / "bind"
    link.symlink_to(volume.backing)
    bind.mkdir()
    change(volume, "key", "rotate", "dk_1", place=link)
    words = ("key", "rotate", "dk_1", "--volume", bind, *volume.unlock)
    done = in_namespace(tdefs_in('mount --bind "$1" "$2"', words), volume.backing, bind)
    assert done.returncode == Exit.OK, done.stderr
    assert "renamed" not in done.stderr
    assert [one["path"] for one in listed(volume)] == [str(volume.backing)]


@needs_root
def test_a_copy_at_the_same_path_of_another_host_is_a_copy(volume: Volume, copy: Volume) -> None:
    """A host is its mounts here: it sees the copy at the original's path, and the same keystore."""
    mount = 'mount --bind "$1" "$2"'
    words = ("key", "rotate", "dk_1", "--volume", volume.backing, *volume.unlock)
    done = in_namespace(tdefs_in(mount, words), copy.backing, volume.backing)
    assert done.returncode == Exit.VOLUME_NOT_REGISTERED, done.stderr
    # with the keystore brought along it is told that it has moved there, and the first host's stays as it is
    brought = copy.root / "brought"
    subprocess.run(["cp", "-a", volume.keystore, brought], check=True)
    before = volume.keystore.read_bytes()
    moved = ("volume", "moved", volume.backing, "--keystore", brought, *volume.unlock)
    done = in_namespace(
        tdefs_in(f"{mount}; {shlex.join([str(TDEFS), *map(str, moved)])}", words), copy.backing, volume.backing
    )
    assert done.returncode == Exit.OK, done.stderr
    assert "did not get the keys" not in done.stderr  # there is no daemon, though the volume is locked meanwhile
    assert volume.keystore.read_bytes() == before
    assert json.loads((copy.backing / ".tdefs/volume.json").read_text())["keystore"] == str(brought)


@needs_root
def test_a_clone_of_a_disk_is_a_copy_while_the_disk_is_away(volume: Volume, copy: Volume) -> None:
    """It may have all the numbers of the disk, but what lies above the old path is of another file system."""
    clone, keystore, key = (copy.root / name for name in ("clone", "keystore", "key"))
    clone.mkdir()
    subprocess.run(["cp", "-p", copy.keystore, keystore], check=True)
    subprocess.run(["cp", "-p", copy.key_file, key], check=True)
    words = ("key", "rotate", "dk_1", "--volume", clone, "--keystore", keystore, "--key-command", f"cat '{key}'")
    with_disk = 'mount --bind "$1" "$2"'
    away = f'{with_disk}; mount -t tmpfs none "$3"'
    places = (volume.backing, clone, volume.root)
    assert in_namespace(tdefs_in(away, words), *places).returncode == Exit.VOLUME_NOT_REGISTERED
    assert in_namespace(tdefs_in(with_disk, words), *places).returncode == Exit.OK


@pytest.mark.usefixtures("filled")
def test_a_second_volume_gets_a_keystore_of_its_own(volume: Volume, copy: Volume) -> None:
    own = copy.root / "own.keystore"
    say(volume, "copied", "--keystore", own, code=Exit.VOLUME_REGISTERED)
    copy.mount()
    say(copy, "copied", "--keystore", own, code=Exit.VOLUME_IN_USE)
    copy.umount()
    say(copy, "copied", code=Exit.USAGE)
    say(copy, "copied", "--keystore", volume.keystore, code=Exit.VOLUME_EXISTS)
    assert not own.exists()
    before = volume.keystore.read_bytes()
    say(copy, "copied", "--keystore", own)
    copy.keystore = own
    assert "does not know" not in copy.tdefs("mount", copy.backing, copy.mountpoint, *copy.unlock).stderr
    (copy.mountpoint / FILE).unlink()
    for words in (("rotate", "dk_1"), ("revoke", "dk_1", "--round", "1"), ("destroy", "dk_1", "--round", "1")):
        said = change(copy, "key", *words)
    assert "0 files became unreadable" in said
    assert volume.keystore.read_bytes() == before
    volume.mount()
    assert (volume.mountpoint / FILE).read_bytes() == CONTENT
    assert json.loads(change(copy, "key", "history", "--json"))["findings"] == []


def shared(volume: Volume, copy: Volume) -> None:
    """Has the copy be a second volume that uses the same keystore."""
    assert "vol_2" in say(copy, "add")
    say(copy, "add", code=Exit.VOLUME_REGISTERED)
    assert [one["id"] for one in listed(volume)] == ["vol_1", "vol_2"]


def revision(volume: Volume) -> int:
    found: int = volume.status()["keystore_revision"]
    return found


@pytest.mark.usefixtures("filled")
def test_every_daemon_that_uses_the_keystore_is_told_and_its_files_are_seen(volume: Volume, copy: Volume) -> None:
    shared(volume, copy)
    volume.mount()
    copy.mount()
    daemons = (*volume.daemons, *copy.daemons)
    for words in (
        ("key", "rotate", "dk_1"),
        ("key", "revoke", "dk_1", "--round", "1"),
        ("key", "rotate-master"),
        ("protector", "add", "--new-key-command", "printf %%064d 9"),
        ("protector", "remove", "pr_2"),
    ):
        said = change(volume, *words)
        for one in (volume, copy):
            assert f'the daemon of volume "{one.backing}" got the change' in said
    assert (revision(volume), revision(copy)) == (7, 7)
    for one in (volume, copy):
        (one.mountpoint / "new").write_bytes(CONTENT)
    # the files of each are counted, and are what keeps the key
    said = change(volume, "key", "destroy", "dk_1", "--round", "1", code=Exit.DATA_KEY_NEEDED)
    assert "2 files use round 1" in said
    for one in (volume, copy):
        assert str(one.data / FILE) in said
    (volume.mountpoint / FILE).unlink()
    change(volume, "key", "destroy", "dk_1", "--round", "1", code=Exit.DATA_KEY_NEEDED)
    shown = json.loads(volume.tdefs("key", "show", "dk_1", "--volume", volume.backing, "--json").stdout)
    assert [one["files"] for one in shown["rounds"]] == [1, 2]
    assert (copy.mountpoint / FILE).read_bytes() == CONTENT
    (copy.mountpoint / FILE).unlink()
    assert "0 files became unreadable" in change(volume, "key", "destroy", "dk_1", "--round", "1")
    assert (volume.daemons[0], copy.daemons[0]) == daemons


@pytest.mark.usefixtures("filled")
def test_a_mounted_copy_that_the_keystore_does_not_know_is_told_and_seen_too(volume: Volume, copy: Volume) -> None:
    copy.mount()
    assert f'the daemon of volume "{copy.backing}" got the change' in change(volume, "key", "rotate", "dk_1")
    change(volume, "key", "revoke", "dk_1", "--round", "1")
    volume.mount()
    (volume.mountpoint / FILE).unlink()
    said = change(volume, "key", "destroy", "dk_1", "--round", "1", code=Exit.DATA_KEY_NEEDED)
    assert f"{copy.data}/{FILE}" in said
    assert [(one["id"], one["path"]) for one in listed(volume)][1:] == [(None, str(copy.backing))]


@needs_root
def test_who_may_not_read_the_keystore_cannot_pass_for_its_user(volume: Volume, copy: Volume) -> None:
    """Anybody can mount something that names any keystore: it neither stops a change nor gets keys."""
    copy.mount()
    os.chown(copy.backing / ".tdefs", NOBODY, NOBODY)
    assert str(copy.backing) not in change(volume, "key", "rotate", "dk_1")
    assert revision(copy) == 1


def test_a_daemon_that_cannot_be_told_is_named_and_the_others_are_told(
    volume: Volume, copy: Volume, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared(volume, copy)
    volume.mount()
    copy.mount()
    (copy.backing / ".tdefs/control").unlink()
    monkeypatch.setattr(daemon_keys, "_PATIENCE_SECONDS", 0.3)
    with pytest.raises(TdefsError) as caught:
        Command(capsys).run(key, "rotate", "dk_1", "--volume", volume.backing, *volume.unlock)
    assert caught.value.exit_code == Exit.DAEMON_NOT_TOLD
    assert f'the daemon of volume "{copy.backing}" did not get the keys' in caught.value.message
    said = capsys.readouterr().err
    assert f'the daemon of volume "{volume.backing}" got the change' in said
    assert "the keystore is changed" in said
    assert revision(volume) == 3
    # a daemon needs no protectors: that it did not get the change is a note
    assert f'"{copy.backing}" did not get the keys' in change(volume, "protector", "label", "pr_1", "x")


def test_a_daemon_with_another_keystore_is_not_told(volume: Volume, copy: Volume) -> None:
    other = copy.root / "other"
    subprocess.run(["cp", "-p", volume.keystore, other], check=True)
    shared(volume, copy)
    copy.mount("--keystore", other)
    said = change(volume, "key", "rotate", "dk_1")
    assert f'uses another keystore, "{other}"' in said
    assert revision(copy) == 1


def test_what_takes_something_away_needs_to_see_every_volume(volume: Volume, copy: Volume) -> None:
    shared(volume, copy)
    (volume.root / "tdefs.yaml").write_text(
        f"version: 1\nvolumes:\n  {volume.backing}:\n    host_key_directory: {volume.root}/host-keys\n"
    )
    change(volume, "protector", "add", "--new-key-command", "printf %%064d 9")
    change(volume, "auto-open", "enable", "--host-key")
    change(volume, "key", "rotate", "dk_1")
    change(volume, "key", "revoke", "dk_1", "--round", "1")
    away = copy.root / "away"
    copy.backing.rename(away)
    before = volume.keystore.read_bytes()
    for words in TAKING.values():
        said = change(volume, *words, code=Exit.VOLUME_UNSEEN)
        assert f'vol_2 at "{copy.backing}": there is no' in said, words
        assert "--unseen-volume vol_2" in said
    words = TAKING["rotate-master"]
    change(volume, *words, "--unseen-volume", "vol_1", code=Exit.VOLUME_UNSEEN)
    change(volume, *words, "--unseen-volume", "vol_7", code=Exit.VOLUME_UNKNOWN)
    # a copy at its place is not it, nor is a volume of another id
    subprocess.run(["cp", "-a", away, copy.backing], check=True)
    assert "copy of it" in change(volume, *words, code=Exit.VOLUME_UNSEEN)
    description = copy.backing / ".tdefs/volume.json"
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, "volume_id": "00" * 16}))
    assert "another volume" in change(volume, *words, code=Exit.VOLUME_UNSEEN)
    assert volume.keystore.read_bytes() == before

    for words in ADDING.values():
        said = change(volume, *words)
        assert ("its daemon, if there is one, did not get the change" in said) == (words[0] == "key")
    meant = ("--unseen-volume", "vol_2")
    for words in TAKING.values():
        more = ("--destroy-files-of", "dk_1") if "destroy" in words else ()
        change(volume, *words, *more, *meant)
        if "change" in words:
            volume.key_file.write_text("7".zfill(64))
    records = json.loads(change(volume, "key", "history", "--json"))["records"]
    unseen = [one["what"].get("unseen") for one in records if "revision" in one["what"]]
    assert unseen[-len(TAKING) :] == ["vol_2"] * len(TAKING)
    assert unseen[: -len(TAKING)] == [None] * (len(unseen) - len(TAKING))


def test_a_clone_with_a_copy_of_the_keystore_made_by_hand_is_moved_in_that(volume: Volume, copy: Volume) -> None:
    own = copy.root / "own.keystore"
    subprocess.run(["cp", "-a", volume.keystore, own], check=True)
    change(copy, "key", "rotate", "dk_1", "--keystore", own, code=Exit.VOLUME_NOT_REGISTERED)
    say(copy, "moved", code=Exit.VOLUME_REGISTERED)  # in the original's keystore
    before = volume.keystore.read_bytes()
    say(copy, "moved", "--keystore", own)
    assert "uses another keystore" not in change(copy, "key", "rotate", "dk_1")
    assert volume.keystore.read_bytes() == before


def test_two_volumes_that_share_a_keystore_part(volume: Volume, copy: Volume) -> None:
    shared(volume, copy)
    own = copy.root / "own.keystore"
    assert "tdefs volume forget vol_2" in say(copy, "copied", "--keystore", own)
    change(volume, "volume", "forget", "vol_2")
    change(copy, "key", "rotate-master")
    change(volume, "key", "rotate-master")
    assert [one["path"] for one in (*listed(volume), *listed(copy))] == [str(volume.backing), str(copy.backing)]


def test_a_volume_that_is_no_more_is_forgotten(volume: Volume, copy: Volume) -> None:
    shared(volume, copy)
    change(volume, "volume", "forget", "vol_2", code=Exit.VOLUME_REGISTERED)
    copy.backing.rename(copy.root / "away")
    assert [one["seen"] for one in listed(volume)] == [True, False]
    change(volume, "volume", "forget", "vol_2")
    change(volume, "volume", "forget", "vol_2", code=Exit.VOLUME_UNKNOWN)
    change(volume, "volume", "forget", "vol_1", code=Exit.VOLUME_REGISTERED)
    change(volume, "key", "rotate-master")


def test_a_volume_that_was_made_to_use_anothers_keystore_is_not_known_to_it(
    scratch: Workspace, volume: Volume
) -> None:
    """By its description, by the configuration or by the command line: ids and keys are the same."""
    standby = scratch.volume("standby")
    standby.key_file = volume.key_file
    standby.init("--existing-keystore", volume.keystore)
    assert [one["path"] for one in listed(standby)] == [str(standby.backing)]
    change(standby, "key", "rotate", "dk_1")
    change(standby, "key", "rotate", "dk_1", "--keystore", volume.keystore, code=Exit.VOLUME_NOT_REGISTERED)
    config = standby.root / "other.yaml"
    config.write_text(f"version: 1\nvolumes:\n  {standby.backing}:\n    keystore: {volume.keystore}\n")
    change(standby, "key", "rotate", "dk_1", "--config", config, code=Exit.VOLUME_NOT_REGISTERED)
    description = standby.backing / ".tdefs/volume.json"
    fields = json.loads(description.read_text())
    description.write_text(json.dumps({**fields, "keystore": str(volume.keystore)}))
    change(standby, "key", "rotate", "dk_1", code=Exit.KEYSTORE_FOREIGN)
    # said, and so remembered, it is one of two
    description.write_text(json.dumps(fields))
    assert "did not get the keys" not in say(standby, "add", "--keystore", volume.keystore)
    change(standby, "key", "rotate", "dk_1")
    assert [one["path"] for one in listed(volume)] == [str(volume.backing), str(standby.backing)]


def test_the_policy_of_every_volume_keeps_the_keys_that_it_names(volume: Volume, copy: Volume) -> None:
    shared(volume, copy)
    change(volume, "key", "create", "dk_2")
    copy.accept(policy="version: 1\ndefault: dk_1\nkinds:\n  wal: dk_2\n")
    copy.mount()
    said = change(volume, "key", "revoke", "dk_2", code=Exit.DATA_KEY_NEEDED)
    assert str(copy.backing) in said


def test_a_keystore_in_the_volumes_own_directory_is_moved_with_it(scratch: Workspace) -> None:
    volume = scratch.volume("own")
    volume.tdefs("init", volume.backing, *volume.unlock)
    new = volume.root / "renamed"
    volume.backing.rename(new)
    volume.backing = new
    done = volume.tdefs("mount", new, volume.mountpoint, *volume.unlock, check=False)
    assert done.returncode == Exit.KEYSTORE_MISSING
    assert f"tdefs volume moved {new} --keystore {new}/.tdefs/keystore" in done.stderr
    say(volume, "moved", "--keystore", new / ".tdefs/keystore")
    volume.mount()
    change(volume, "key", "rotate", "dk_1")

"""What a volume may do stands in its keystore, and nothing in the volume's own directory changes that.

Covers tdefs/volume/description.py, tdefs/volume/registry.py, tdefs/cli/common/unlocking.py and
``tdefs policy accept``. An attacker can write to the backing directory, and has every older state of it and of the
keystore, but no key.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import cat, ls, verify
from tdefs.cli.key import command as key
from tdefs.cli.policy import command as policy
from tdefs.cli.volume import command as volume
from tdefs.errors import Exit, TdefsError
from tdefs.format.errors import ForeignFile, LowSuite
from tdefs.keys.keystore.changes import restate_volume
from tdefs.keys.keystore.entries import Statements
from tdefs.keys.keystore.file import Unlocked, load_keystore
from tdefs.keys.keystore.text import serialise
from tdefs.keys.protectors.command import CommandProtector
from tdefs.offline.reader import OfflineReader
from tdefs.volume.description import read_volume
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

UNLOCK = ("--key-command", KEY_COMMAND)
PLAIN_WAL = "version: 1\nkinds: {wal: plain}\n"
WAL = "pg_wal/000000010000000000000001"


def description(small: SmallVolume) -> Path:
    return small.volume.private / "volume.json"


def forge(small: SmallVolume, **changes: Any) -> None:
    fields = json.loads(description(small).read_text())
    description(small).write_text(json.dumps(fields | changes))


def unlocked(small: SmallVolume) -> Unlocked:
    return load_keystore(small.volume.keystore).open(CommandProtector(KEY_COMMAND))


def entry(small: SmallVolume, number: int = 0) -> Statements:
    return load_keystore(small.volume.keystore).document.volumes[number].statements


def refusal(command: Command, module: Any, *words: str | Path) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        command.run(module, *words, *UNLOCK)
    return caught.value


@pytest.fixture
def plain_wal(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(PLAIN_WAL)
    return path


# --- volume.json


def test_the_description_holds_nothing_that_a_volume_may_do(small: SmallVolume) -> None:
    assert json.loads(description(small).read_text()).keys() == {
        *("format_version", "volume_id", "keystore", "keystore_mac")
    }


def test_a_description_that_allows_plain_files_allows_none(
    small: SmallVolume, command: Command, plain_wal: Path
) -> None:
    small.plain("pg_hba.conf", b"host all all all trust\n")
    forge(small, plain_files=True, policy=str(plain_wal), lowest_suite=0, policy_digest="00" * 32)
    small.volume = read_volume(small.volume.backing)
    assert small.believed.statements == Statements()
    with pytest.raises(ForeignFile), small.reader().open("pg_hba.conf"):
        pass
    assert refusal(command, cat, "pg_hba.conf", "--volume", small.volume.backing).exit_code == Exit.FILE_DAMAGED
    assert command.run(verify, small.volume.backing, *UNLOCK)[0] == Exit.VERIFY_FOUND_DAMAGE


def test_a_description_of_another_volume_opens_no_keystore(small: SmallVolume, command: Command) -> None:
    small.encrypt("file", b"content")
    forge(small, volume_id="00" * 16)
    assert refusal(command, cat, "file", "--volume", small.volume.backing).exit_code == Exit.KEYSTORE_FOREIGN


def test_a_description_that_was_removed_makes_no_new_volume(small: SmallVolume, command: Command) -> None:
    small.encrypt("file", b"content")
    description(small).unlink()
    assert refusal(command, cat, "file", "--volume", small.volume.backing).exit_code == Exit.NOT_A_VOLUME


def test_a_description_of_an_older_tdefs_is_named(small: SmallVolume, command: Command) -> None:
    forge(small, format_version=1)
    error = refusal(command, cat, "file", "--volume", small.volume.backing)
    assert error.exit_code == Exit.VOLUME_DAMAGED
    assert error.message.endswith("it was made by an older tdefs")


OTHER_PLACES = ("keystore.older", ".tdefs/keystore")
USES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "cat": (cat, ("file", "--volume", "BACKING")),
    "verify": (verify, ("BACKING",)),
    "key rotate": (key, ("rotate", "dk_1", "--volume", "BACKING")),
    "policy accept": (policy, ("accept", "--no-policy", "--volume", "BACKING")),
    "volume moved": (volume, ("moved", "BACKING")),
    "volume copied": (volume, ("copied", "BACKING", "--keystore", "COPY")),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("place", OTHER_PLACES)
def test_a_description_that_names_an_older_keystore_opens_nothing(
    small: SmallVolume, command: Command, tmp_path: Path, place: str, use: tuple[Any, tuple[str, ...]]
) -> None:
    """Such as one of when plain files were allowed: it opens by the same secret, and has the same volume id."""
    small.encrypt("file", b"content")
    older = small.volume.backing / place
    shutil.copy(small.volume.keystore, older)
    forge(small, keystore=str(older))
    backing = small.volume.backing
    if "copied" in use[1]:
        backing = Path(shutil.copytree(backing, tmp_path / "copy"))
    words = {"BACKING": str(backing), "COPY": str(tmp_path / "copied")}
    error = refusal(command, use[0], *(words.get(word, word) for word in use[1]))
    assert error.exit_code == Exit.KEYSTORE_FOREIGN
    assert "--keystore" in error.hint
    assert not (tmp_path / "copied").exists()


def test_the_place_of_the_keystore_is_under_a_mac(small: SmallVolume, command: Command) -> None:
    small.encrypt("file", b"content")
    for changes, code in (
        ({"keystore_mac": "00" * 32}, Exit.KEYSTORE_FOREIGN),
        ({"keystore_mac": ""}, Exit.VOLUME_DAMAGED),
        ({"keystore_mac": None}, Exit.VOLUME_DAMAGED),
    ):
        forge(small, **changes)
        assert refusal(command, cat, "file", "--volume", small.volume.backing).exit_code == code


@pytest.mark.parametrize("by", ["command line", "configuration", "volume moved"])
def test_who_names_the_keystore_is_believed(small: SmallVolume, command: Command, tmp_path: Path, by: str) -> None:
    small.encrypt("file", b"content")
    forge(small, keystore=str(tmp_path / "nowhere"))
    words: list[str | Path] = ["--keystore", small.volume.keystore]
    if by == "configuration":
        (tmp_path / "tdefs.yaml").write_text(
            f"version: 1\nvolumes:\n  {small.volume.backing}:\n    keystore: {small.volume.keystore}\n"
        )
        words = ["--config", tmp_path / "tdefs.yaml"]
    elif by == "volume moved":
        command.run(volume, "moved", small.volume.backing, *words, *UNLOCK)
        words = []
    assert command.run(cat, "file", "--volume", small.volume.backing, *words, *UNLOCK)[1] == "content"


def test_naming_the_remembered_keystore_mends_what_was_forged(small: SmallVolume, command: Command) -> None:
    small.encrypt("file", b"content")
    forge(small, keystore_mac="00" * 32)
    command.run(volume, "moved", small.volume.backing, "--keystore", small.volume.keystore, *UNLOCK)
    assert command.run(cat, "file", "--volume", small.volume.backing, *UNLOCK)[1] == "content"


# --- the entry in the keystore


@pytest.mark.parametrize("field", ["plain_files", "lowest_suite", "policy_digest", "policy"])
def test_what_a_volume_may_do_is_under_the_keystores_mac(small: SmallVolume, command: Command, field: str) -> None:
    small.encrypt("file", b"content")
    document = load_keystore(small.volume.keystore).document
    value: Any = {"plain_files": True, "lowest_suite": 2, "policy_digest": "00" * 32, "policy": "/p"}[field]
    forged = replace(document, volumes=(replace(document.volumes[0], **{field: value}),))
    small.volume.keystore.write_bytes(serialise(forged))
    assert refusal(command, cat, "file", "--volume", small.volume.backing).exit_code == Exit.KEYSTORE_DAMAGED


def test_a_file_of_a_lower_suite_than_the_lowest_is_refused(small: SmallVolume) -> None:
    """There is one suite today, so the lowest is raised above it."""
    small.encrypt("file", b"content")
    raised = restate_volume(unlocked(small), "vol_1", Statements(lowest_suite=2))
    small.volume.keystore.write_bytes(serialise(raised.document))
    reader = OfflineReader(small.volume, small.ring, small.believed)
    with pytest.raises(LowSuite, match="cipher suite 1, and the lowest of this volume is 2"), reader.open("file"):
        pass


def test_a_copy_that_is_not_known_may_do_what_every_known_volume_may(
    small: SmallVolume, command: Command, plain_wal: Path
) -> None:
    backing = small.volume.backing
    command.run(policy, "accept", "--volume", backing, "--policy", plain_wal, "--yes", *UNLOCK)
    small.plain(WAL, b"plain")
    second, third = backing.with_name("second"), backing.with_name("third")
    for place in (second, third):
        shutil.copytree(backing, place)

    def wal_of(place: Path) -> str:
        return command.run(cat, WAL, "--volume", place, *UNLOCK)[1]

    assert wal_of(third) == "plain"  # whatever it is a copy of may hold plain files
    command.run(volume, "add", second, *UNLOCK)
    assert entry(small, 1) == entry(small, 0)
    document = load_keystore(small.volume.keystore).document
    strict = restate_volume(unlocked(small), document.volumes[1].id, Statements())
    small.volume.keystore.write_bytes(serialise(strict.document))
    assert wal_of(backing) == "plain"
    for place in (second, third):
        assert refusal(command, cat, WAL, "--volume", place).exit_code == Exit.FILE_DAMAGED


# --- tdefs policy accept


def accept(small: SmallVolume, command: Command, *words: str | Path) -> str:
    return command.run(policy, "accept", "--volume", small.volume.backing, *words, *UNLOCK)[1]


def test_an_accepted_policy_stands_in_the_keystore_and_in_its_history(
    small: SmallVolume, command: Command, plain_wal: Path
) -> None:
    accept(small, command, "--policy", plain_wal, "--yes")
    found = entry(small)
    assert (found.plain_files, found.policy, len(found.policy_digest)) == (True, str(plain_wal), 64)
    records = command.json(key, "history", "--volume", small.volume.backing, *UNLOCK)["records"]
    (said,) = (one["what"] for one in records if one["event"] == "policy accept")
    assert said["policy"] == str(plain_wal)
    assert (said["volume"], said["digest"], said["plain_files"]) == ("vol_1", found.policy_digest, "yes")
    # what is in the clear stays readable
    accept(small, command, "--no-policy")
    assert entry(small) == Statements(plain_files=True)


def test_what_was_encrypted_before_is_told_and_somebody_must_mean_it(
    small: SmallVolume, command: Command, plain_wal: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(command, policy, "accept", "--volume", small.volume.backing, "--policy", plain_wal)
    assert error.exit_code == Exit.POLICY_NOT_ACCEPTED
    assert "files of the kind wal" in capsys.readouterr().err
    assert entry(small) == Statements()
    accept(small, command, "--policy", plain_wal, "--yes")
    # nothing more than before is in the clear
    plain_wal.write_text("# a comment\nversion: 1\nkinds: {wal: plain}\n")
    accept(small, command)
    plain_wal.write_text("version: 1\nkinds: {wal: plain, log: plain}\n")
    error = refusal(command, policy, "accept", "--volume", small.volume.backing)
    assert error.exit_code == Exit.POLICY_NOT_ACCEPTED
    assert "files of the kind log" in capsys.readouterr().err


def test_a_policy_whose_data_keys_are_not_there_is_not_accepted(
    small: SmallVolume, command: Command, plain_wal: Path
) -> None:
    plain_wal.write_text("version: 1\ndefault: dk_9\n")
    error = refusal(command, policy, "accept", "--volume", small.volume.backing, "--policy", plain_wal)
    assert error.exit_code == Exit.DATA_KEY_UNKNOWN
    assert entry(small) == Statements()


def test_a_policy_is_not_accepted_without_the_secret(
    small: SmallVolume, command: Command, plain_wal: Path
) -> None:
    with pytest.raises(TdefsError) as caught:
        command.run(
            policy,
            *("accept", "--volume", small.volume.backing, "--policy", plain_wal, "--yes"),
            *("--key-command", "printf %%064d 8"),
        )
    assert caught.value.exit_code == Exit.WRONG_SECRET
    assert entry(small) == Statements()


def test_ls_shows_a_planted_plain_file_as_damaged(small: SmallVolume, command: Command) -> None:
    small.plain("pg_hba.conf", b"host all all all trust\n")
    forge(small, plain_files=True)
    assert "damaged" in command.run(ls, small.volume.backing)[1]

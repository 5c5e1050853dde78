"""What the record of a session is believed of, and what an attacker gains by it: nothing.

Covers tdefs/volume/session_record.py and tdefs/volume/believed.py. An attacker can write to the backing directory,
and has every older state of it, but no key; the keystore and its history lie elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdefs.cli import verify
from tdefs.cli.volume import command as volume
from tdefs.format.errors import MissingHeader
from tdefs.keys.keystore.history import head_path, history_path
from tdefs.offline.recovery import empty_unfinished_files
from tdefs.volume.session_record import SESSION_FILE, Ending, Session
from tests.support.offline_volumes import KEY_COMMAND, Command, SmallVolume

TABLE = "base/5/16384"
UNLOCK = ("--key-command", KEY_COMMAND)


def record(small: SmallVolume) -> Path:
    return small.volume.private / SESSION_FILE


def wipe(small: SmallVolume) -> None:
    """Do what an attacker would have taken for the work of a crash."""
    small.encrypt(TABLE, b"content")
    stored = small.path(TABLE)
    stored.write_bytes(bytes(8192) + stored.read_bytes()[8192:])


def rewrite(small: SmallVolume, **changes: Any) -> None:
    fields = json.loads(record(small).read_bytes())
    record(small).write_bytes(json.dumps(fields | changes).encode().ljust(8192))


def by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def lose_history(keystore: Path) -> None:
    history_path(keystore).unlink()
    head_path(keystore).unlink()


def is_not_softened(small: SmallVolume, ending: Ending = Ending.UNPROVEN) -> None:
    """A wiped header stays damage, and the next mount does not empty the file."""
    believed = small.believed
    assert believed.last.ending is ending, believed.last.reason
    assert (believed.last.reason != "") == (ending is Ending.UNPROVEN)
    with pytest.raises(MissingHeader), small.reader().open(TABLE):
        pass
    before = small.path(TABLE).read_bytes()
    assert empty_unfinished_files(small.volume, believed) == []
    assert small.path(TABLE).read_bytes() == before


def test_a_crash_is_believed_and_its_unfinished_files_are_emptied(small: SmallVolume) -> None:
    wipe(small)
    small.mounted_at("/mnt", clean=True)
    is_not_softened(small, Ending.CLEAN)
    small.crash()
    assert small.believed.last.ending is Ending.UNCLEAN
    with small.reader().open(TABLE) as file:
        assert file.length == 0
    assert empty_unfinished_files(small.volume, small.believed) == [TABLE]
    assert small.path(TABLE).stat().st_size == 0


def test_a_volume_that_was_never_mounted_was_left_clean(small: SmallVolume) -> None:
    wipe(small)
    is_not_softened(small, Ending.CLEAN)


INVENTED: dict[str, Callable[[SmallVolume], object]] = {
    "as before there were MACs": lambda small: record(small).write_text(
        '{"pid": 1, "mountpoint": "/mnt", "clean": false}'
    ),
    "not clean": lambda small: rewrite(small, clean=False),
    "another key": lambda small: record(small).write_text(
        json.dumps(
            {
                **json.loads(record(small).read_bytes()),
                "clean": False,
                "mac": Session(1, "/mnt", clean=False, volume="vol_1").authenticated(bytes(32)).mac.hex(),
            }
        )
    ),
    "no JSON": lambda small: record(small).write_text("nonsense"),
    "zeros": lambda small: record(small).write_bytes(bytes(8192)),
    "removed": lambda small: record(small).unlink(),
    "a directory": lambda small: by_directory(record(small)),
    "a link to nothing": lambda small: by_link(record(small)),
}


@pytest.mark.parametrize("invent", INVENTED.values(), ids=INVENTED)
def test_an_invented_or_removed_record_softens_nothing(
    small: SmallVolume, invent: Callable[[SmallVolume], object]
) -> None:
    wipe(small)
    small.mounted_at("/mnt", clean=True)
    invent(small)
    is_not_softened(small)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("pid", 1), ("mountpoint", "/other"), ("clean", True), ("plain_files", True), ("volume", "vol_2")),
        *(("volume", ""), ("number", 2), ("number", 99), ("id", "00" * 16), ("mac", "00" * 32)),
    ],
)
def test_every_field_of_the_record_is_under_its_mac(small: SmallVolume, field: str, value: object) -> None:
    wipe(small)
    small.crash()
    assert small.believed.last.ending is Ending.UNCLEAN
    rewrite(small, **{field: value})
    is_not_softened(small)


def test_a_record_from_the_middle_of_a_session_does_not_come_back_after_its_end(small: SmallVolume) -> None:
    wipe(small)
    book = small.known.book
    book.begin(4242, "/mnt", plain_files=False)
    middle = record(small).read_bytes()
    book.end()
    record(small).write_bytes(middle)
    is_not_softened(small)


@pytest.mark.parametrize("clean", [True, False])
def test_the_record_of_an_older_session_does_not_come_back(small: SmallVolume, clean: bool) -> None:
    wipe(small)
    small.crash()
    older = record(small).read_bytes()
    small.mounted_at("/mnt", clean=clean)
    record(small).write_bytes(older)
    is_not_softened(small)


def test_the_record_of_an_older_clean_session_does_not_hide_a_crash(small: SmallVolume) -> None:
    wipe(small)
    small.mounted_at("/mnt", clean=True)
    older = record(small).read_bytes()
    small.crash()
    record(small).write_bytes(older)
    is_not_softened(small)


def test_the_record_of_another_volume_of_the_keystore_counts_for_nothing(
    small: SmallVolume, command: Command
) -> None:
    wipe(small)
    small.mounted_at("/mnt", clean=True)
    other = small.volume.backing.with_name("other")
    shutil.copytree(small.volume.backing, other)
    command.run(volume, "add", other, *UNLOCK)
    second = SmallVolume.__new__(SmallVolume)
    vars(second).update(vars(small))
    second.volume = small.volume.__class__(
        other, small.volume.volume_id, small.volume.keystore, small.volume.keystore_mac
    )
    second.crash()
    assert second.believed.last.ending is Ending.UNCLEAN
    shutil.copyfile(record(second), record(small))
    is_not_softened(small)


LOST: dict[str, Callable[[Path], object]] = {
    "removed": lose_history,
    "no head": lambda keystore: head_path(keystore).unlink(),
    "cut": lambda keystore: history_path(keystore).write_bytes(
        b"".join(history_path(keystore).read_bytes().splitlines(keepends=True)[:-1])
    ),
    "a directory": lambda keystore: by_directory(history_path(keystore)),
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_without_a_sound_history_a_crash_is_not_proven(small: SmallVolume, lose: Callable[[Path], object]) -> None:
    """A keystore in the volume's own directory has its history there, which an attacker could remove, too."""
    wipe(small)
    small.crash()
    small.crash()
    lose(small.volume.keystore)
    is_not_softened(small)


def test_who_has_no_key_cannot_tell_the_history_of_a_session(small: SmallVolume) -> None:
    """A record without a MAC, such as of a wrong secret, is covered by the next MAC, whoever wrote it."""
    wipe(small)
    small.crash()
    older = record(small).read_bytes()
    small.mounted_at("/mnt", clean=True)
    fields = json.loads(older)
    what = {"volume": "vol_1", "session": fields["number"], "session_id": fields["id"]}
    line = {"n": 9, "time": "2026-01-01T00:00:00Z", "event": "mount", "who": {}, "what": what}
    with history_path(small.volume.keystore).open("a") as history:
        history.write(json.dumps(line, separators=(",", ":"))[:-1] + ',"mac":null}\n')
    record(small).write_bytes(older)
    is_not_softened(small)


def copy_of(small: SmallVolume) -> SmallVolume:
    """A copy that the keystore does not know at its place."""
    backing = small.volume.backing.with_name("copy")
    shutil.copytree(small.volume.backing, backing)
    copy = SmallVolume.__new__(SmallVolume)
    vars(copy).update(vars(small))
    copy.volume = small.volume.__class__(
        backing, small.volume.volume_id, small.volume.keystore, small.volume.keystore_mac
    )
    return copy


def test_a_copy_in_the_middle_of_the_newest_session_recovers_as_after_a_crash(small: SmallVolume) -> None:
    wipe(small)
    small.crash()
    copy = copy_of(small)
    assert copy.believed.last.ending is Ending.UNCLEAN
    assert empty_unfinished_files(copy.volume, copy.believed) == [TABLE]


@pytest.mark.parametrize("action", ["add", "copied", "moved"])
def test_an_older_copy_recovers_once_a_person_has_said_that_it_is_meant(
    small: SmallVolume, command: Command, action: str
) -> None:
    wipe(small)
    book = small.known.book
    book.begin(4242, "/mnt", plain_files=False)
    copy = copy_of(small)
    book.end()
    is_not_softened(copy)
    words: list[str | Path] = []
    if action == "moved":
        shutil.rmtree(small.volume.backing)
    if action == "copied":
        words = ["--keystore", small.volume.keystore.with_name("second")]
    command.run(volume, action, copy.volume.backing, *words, *UNLOCK)
    if action == "copied":
        copy.volume = copy.volume.__class__(copy.volume.backing, copy.volume.volume_id, Path(words[1]), b"")
    assert copy.believed.last.ending is Ending.UNCLEAN, copy.believed.last.reason
    assert empty_unfinished_files(copy.volume, copy.believed) == [TABLE]


def test_a_copy_that_is_not_known_writes_nothing_into_the_history(small: SmallVolume) -> None:
    small.mounted_at("/mnt", clean=True)
    copy = copy_of(small)
    before = history_path(small.volume.keystore).read_bytes()
    copy.mounted_at("/mnt", clean=False)
    assert history_path(small.volume.keystore).read_bytes() == before
    assert copy.believed.last.ending is Ending.UNPROVEN  # nobody could tell an older record of it from this one
    assert small.believed.last.ending is Ending.CLEAN


def test_verify_says_that_the_record_is_not_believed(small: SmallVolume, command: Command) -> None:
    small.mounted_at("/mnt", clean=True)
    rewrite(small, clean=False)
    said = command.run(verify, small.volume.backing, *UNLOCK)[1]
    assert "how the last session ended is not proven" in said


def test_sessions_are_numbered_on_where_the_history_was_lost(small: SmallVolume) -> None:
    for _ in range(3):
        small.mounted_at("/mnt", clean=True)
    lose_history(small.volume.keystore)
    small.mounted_at("/mnt", clean=True)
    assert json.loads(record(small).read_bytes())["number"] == 4
    assert record(small).stat().st_size == 8192

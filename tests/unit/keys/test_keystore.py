"""The promises of keystore.file and keystore.wrapped_keys."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import KeyRing, key_fingerprint
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import Keystore, create_keystore, load_keystore
from tdefs.keys.keystore.text import serialise
from tdefs.keys.protectors.base import Parameters
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.keys.wrapping import WrapContext
from tests.unit.golden import by_the_book
from tests.unit.keys.keystore_samples import (
    CHEAP,
    GOLDEN,
    KEY_HEX,
    OTHER_VOLUME_ID,
    PASSPHRASE,
    VOLUME_ID,
    WRONG_PASSPHRASE,
    everything_shown,
    new_keystore,
    passphrase,
    private_copy,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keystore"


def failure(action: Callable[[], object]) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        action()
    return caught.value


def test_keys_come_back_with_the_passphrase(path: Path) -> None:
    created = create_keystore(path, VOLUME_ID, passphrase(), data_key_names=("dk_1", "payroll"))
    keystore = load_keystore(path)
    keystore.check_volume(VOLUME_ID)
    unlocked = keystore.unlock(passphrase())
    assert list(unlocked) == list(created)
    assert unlocked.names() == ["dk_1", "payroll"]
    assert unlocked.default_name == "dk_1"
    assert unlocked.volume_id == VOLUME_ID
    assert len({key.secret for key in unlocked}) == 2


def test_keys_come_back_with_the_key_command(path: Path) -> None:
    created = create_keystore(path, VOLUME_ID, CommandProtector(f"echo {KEY_HEX}"))
    unlocked = load_keystore(path).unlock(CommandProtector(f"printf %%s {KEY_HEX.upper()}"))
    assert list(unlocked) == list(created)


def shown_keys(ring: KeyRing) -> dict[tuple[str, int, str], str]:
    return {(key.name, key.round, key.algorithm): key_fingerprint(key).hex() for key in ring}


def test_golden_keystore_opens_for_ever(tmp_path: Path) -> None:
    keystore = load_keystore(private_copy(GOLDEN, tmp_path / "keystore"))
    assert [entry.path for entry in keystore.document.volumes] == ["/srv/tdefs/main", "/srv/tdefs/wal"]
    assert [entry.plain_files for entry in keystore.document.volumes] == [True, False]
    ring = keystore.unlock(PassphraseProtector(lambda: PASSPHRASE))
    assert shown_keys(ring) == {
        ("dk_1", 2, "aes-256-xts"): "c1feee54b03d4369",
        ("dk_1", 3, "aes-256-xts"): "4cf88151f75f5eec",
        ("dk_2", 1, "aes-256-xts"): "5ae20eb93c9a08ef",
    }
    assert ring.revoked == frozenset({("dk_1", 2)})
    assert ring.destroyed.keys() == {("dk_1", 1)}
    assert ring.current("dk_1").round == 3
    assert list(keystore.unlock(CommandProtector(f"echo {KEY_HEX}"))) == list(ring)
    # and as an outsider would open it
    by_hand = by_the_book.data_keys(GOLDEN.read_bytes(), bytes.fromhex(KEY_HEX))
    assert by_hand == {(key.name, key.round): key.secret for key in ring}


def test_keystore_is_readable_by_its_owner_only_whatever_the_umask(path: Path) -> None:
    old = os.umask(0)
    try:
        new_keystore(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keystore"]


def test_wrong_passphrase_is_told_from_damage(path: Path) -> None:
    new_keystore(path)
    error = failure(lambda: load_keystore(path).unlock(passphrase(WRONG_PASSPHRASE)))
    assert error.exit_code == Exit.WRONG_SECRET
    assert error.message == "wrong passphrase"


def test_wrong_command_key_is_told_from_damage(path: Path) -> None:
    create_keystore(path, VOLUME_ID, CommandProtector(f"echo {KEY_HEX}"))
    error = failure(lambda: load_keystore(path).unlock(CommandProtector(f"echo {KEY_HEX[::-1]}")))
    assert error.exit_code == Exit.WRONG_SECRET


def test_foreign_volume_is_refused(path: Path) -> None:
    new_keystore(path)
    error = failure(lambda: load_keystore(path).check_volume(OTHER_VOLUME_ID))
    assert error.exit_code == Exit.KEYSTORE_FOREIGN
    assert VOLUME_ID.hex() in error.detail
    assert OTHER_VOLUME_ID.hex() in error.detail


def test_missing_keystore_has_its_own_error(path: Path) -> None:
    assert failure(lambda: load_keystore(path)).exit_code == Exit.KEYSTORE_MISSING
    path.write_text("a file")
    assert failure(lambda: load_keystore(path / "keystore")).exit_code == Exit.KEYSTORE_MISSING


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o660, 0o644])
def test_keystore_that_others_can_reach_is_refused_before_it_is_read(path: Path, mode: int) -> None:
    path.write_bytes(b"damaged as well")
    path.chmod(mode)
    error = failure(lambda: load_keystore(path))
    assert error.exit_code == Exit.KEYSTORE_EXPOSED
    assert error.hint == f"chmod 600 {path}"
    assert f"{mode:04o}" in error.detail


def test_keystore_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_keystore(path)
    if os.geteuid() == 0:
        os.chown(path, 4711, 4711)
    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    error = failure(lambda: load_keystore(path))
    assert error.exit_code == Exit.KEYSTORE_EXPOSED
    assert "chown" in error.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_keystore_of_any_user_is_accepted_by_root(path: Path) -> None:
    new_keystore(path)
    os.chown(path, 4711, 4711)
    load_keystore(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file of root's")
def test_keystore_of_root_is_accepted_by_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_keystore(path)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    load_keystore(path)


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("real"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, _link], ids=["directory", "fifo", "link"])
def test_keystore_that_is_no_regular_file_is_refused_without_waiting(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    assert failure(lambda: load_keystore(path)).exit_code == Exit.FILE_UNTRUSTED


def test_existing_file_is_never_overwritten(path: Path) -> None:
    for make in (lambda: path.write_bytes(b"precious"), lambda: path.symlink_to("/nonexistent/target")):
        make()
        before = os.lstat(path)
        assert failure(lambda: new_keystore(path)).exit_code == Exit.VOLUME_EXISTS
        assert os.lstat(path) == before
        path.unlink()


def test_file_that_appears_meanwhile_is_not_overwritten(path: Path) -> None:
    def type_slowly() -> bytes:
        path.write_bytes(b"precious")
        return PASSPHRASE

    error = failure(lambda: create_keystore(path, VOLUME_ID, PassphraseProtector(type_slowly, cost=CHEAP)))
    assert error.exit_code == Exit.VOLUME_EXISTS
    assert path.read_bytes() == b"precious"


def test_directory_that_cannot_be_written_is_an_os_error(path: Path) -> None:
    error = failure(lambda: new_keystore(path / "missing" / "keystore"))
    assert error.exit_code == Exit.OS_ERROR


def test_secret_of_another_kind_is_refused_before_it_is_asked_for(path: Path) -> None:
    def must_not_be_asked() -> bytes:
        raise AssertionError

    create_keystore(path, VOLUME_ID, CommandProtector(f"echo {KEY_HEX}"))
    error = failure(lambda: load_keystore(path).unlock(PassphraseProtector(must_not_be_asked)))
    assert error.exit_code == Exit.NO_SECRET
    assert error.detail.endswith("kind: command")
    path.unlink()
    new_keystore(path)
    error = failure(lambda: load_keystore(path).unlock(CommandProtector("exit 1")))
    assert error.exit_code == Exit.NO_SECRET
    assert error.detail.endswith("kind: passphrase")


def test_each_entry_of_several_protectors_is_tried(path: Path) -> None:
    """A keystore of several protectors, as written by hand: the wanted one is between others."""
    new_keystore(path)
    locked = load_keystore(path)
    entry = locked.document.protectors[0]
    others = (replace(entry, id="pr_8", kind="command", params={}), replace(entry, id="pr_9"))
    document = replace(locked.document, protectors=(*others, entry))
    # The master key is found (its MAC then shows the change), although two entries before do not fit.
    error = failure(lambda: Keystore(path, document).unlock(passphrase()))
    assert "without the master key" in error.detail


def altered_by_stranger(path: Path, alter: Callable[[Document], Document]) -> TdefsError:
    """Alter an undamaged keystore as someone without the key can, with a right checksum, and unlock it."""
    create_keystore(path, VOLUME_ID, passphrase(), data_key_names=("dk_1", "dk_2"))
    path.write_bytes(serialise(alter(load_keystore(path).document)))
    return failure(lambda: load_keystore(path).unlock(passphrase()))


def exchange_data_keys(document: Document) -> Document:
    first, second = document.data_keys
    return replace(
        document, data_keys=(replace(first, rounds=second.rounds), replace(second, rounds=first.rounds))
    )


def change_default(document: Document) -> Document:
    keys = tuple(replace(key, default=not key.default) for key in document.data_keys)
    return replace(document, data_keys=keys)


def drop_data_key(document: Document) -> Document:
    return replace(document, data_keys=document.data_keys[:1])


def renumber_round(document: Document) -> Document:
    key = document.data_keys[0]
    changed = replace(key, rounds=(replace(key.rounds[0], round=2),))
    return replace(document, data_keys=(changed, *document.data_keys[1:]))


@pytest.mark.parametrize("alter", [exchange_data_keys, change_default, drop_data_key, renumber_round])
def test_alteration_without_the_master_key_is_found(path: Path, alter: Callable[[Document], Document]) -> None:
    error = altered_by_stranger(path, alter)
    assert error.exit_code == Exit.KEYSTORE_DAMAGED
    assert "altered by someone without the master key" in error.detail


def test_keystore_relabelled_for_another_volume_does_not_open(path: Path) -> None:
    error = altered_by_stranger(path, lambda document: replace(document, volume_id=OTHER_VOLUME_ID))
    assert error.exit_code == Exit.WRONG_SECRET  # the wrapping is bound to the volume id


def test_data_keys_exchanged_under_a_right_mac_do_not_unwrap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second line of defence: even without the MAC, an entry opens only in its own place."""
    monkeypatch.setattr("tdefs.keys.keystore.wrapped_keys.fits_mac", lambda mac, *content: len(mac) == 32)
    error = altered_by_stranger(path, exchange_data_keys)
    assert error.exit_code == Exit.KEYSTORE_DAMAGED
    assert "round 1 of data key dk_1" in error.detail


def test_protector_that_cannot_undo_its_work_is_found_at_creation(path: Path) -> None:
    class Forgetful(PassphraseProtector):
        def recover(self, params: Parameters, context: WrapContext) -> bytes:
            return passphrase(WRONG_PASSPHRASE).recover(params, context)

    forgetful = Forgetful(lambda: PASSPHRASE, cost=CHEAP)
    assert failure(lambda: create_keystore(path, VOLUME_ID, forgetful)).exit_code == Exit.WRONG_SECRET
    assert list(path.parent.iterdir()) == []


def secrets_of(ring: KeyRing) -> list[bytes]:
    return [PASSPHRASE, WRONG_PASSPHRASE, *(key.secret for key in ring)]


def test_no_secret_in_the_file_or_in_any_error(path: Path) -> None:
    ring = new_keystore(path)
    file = path.read_text()
    keystore = load_keystore(path)
    errors = [
        failure(lambda: keystore.unlock(passphrase(WRONG_PASSPHRASE))),
        failure(lambda: Keystore(path, exchange_mac(keystore.document)).unlock(passphrase())),
        failure(lambda: keystore.check_volume(OTHER_VOLUME_ID)),
        failure(lambda: keystore.unlock(CommandProtector(f"echo {KEY_HEX}"))),
        failure(lambda: ring.current("dk_9")),
    ]
    shown = "".join(everything_shown(error) for error in errors) + repr(keystore) + repr(passphrase())
    for secret in secrets_of(ring):
        for form in (repr(secret)[2:-1], secret.hex(), secret.decode("latin-1")):
            assert form not in file
            assert form not in shown
    assert json.dumps(KEY_HEX) not in shown


def exchange_mac(document: Document) -> Document:
    return replace(document, mac=bytes(32))


@pytest.mark.parametrize("names", [(), ("dk_1", "dk_1"), ("Bad",)])
def test_impossible_data_key_names_are_a_programming_error(path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="name"):
        create_keystore(path, VOLUME_ID, passphrase(), data_key_names=names)
    assert not path.exists()

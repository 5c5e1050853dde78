"""The promises of keystore.changes and keystore.key_changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore.changes import add_protector, change_protector, remove_protector
from tdefs.keys.keystore.entries import Document
from tdefs.keys.keystore.file import Keystore, Unlocked
from tdefs.keys.keystore.key_changes import (
    create_data_key,
    destroy_rounds,
    revoke_rounds,
    rotate_data_key,
    rotate_master_key,
)
from tdefs.keys.keystore.text import parse, serialise
from tdefs.keys.keystore.wrapped_keys import kept_protector_key, new_document, open_history_key, sign
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tests.unit.keys.keystore_samples import (
    KEY_HEX,
    VOLUME_ID,
    passphrase,
)

ESCROW = CommandProtector(f"echo {KEY_HEX}")
NEW_PASSPHRASE = b"a quite different sentence"


def opened(document: Document, protector: Protector | None = None) -> Unlocked:
    """Unlock a document after its way through a file."""
    return Keystore(Path("keystore"), parse(serialise(document))).open(protector or passphrase())


@pytest.fixture
def unlocked() -> Unlocked:
    return opened(new_document(VOLUME_ID, passphrase(), ("dk_1", "dk_2")))


def failure(action: Callable[[], object]) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        action()
    return caught.value


def secrets(ring: KeyRing) -> dict[tuple[str, int], bytes]:
    return {(key.name, key.round): key.secret for key in ring}


def test_each_protector_opens_the_same_keys(unlocked: Unlocked) -> None:
    both, id = add_protector(unlocked, ESCROW, "escrow")
    assert id == "pr_2"
    by_escrow, by_passphrase = opened(both.document, ESCROW), opened(both.document)
    assert (by_escrow.protector_id, by_passphrase.protector_id) == ("pr_2", "pr_1")
    assert secrets(by_escrow.ring) == secrets(by_passphrase.ring) == secrets(unlocked.ring)
    assert [entry.label for entry in both.document.protectors] == ["", "escrow"]


def test_removed_protector_opens_no_more_and_the_last_one_stays(unlocked: Unlocked) -> None:
    both, _ = add_protector(unlocked, ESCROW, "")
    one = remove_protector(both, "pr_1")
    assert failure(lambda: opened(one.document)).exit_code == Exit.NO_SECRET
    assert secrets(opened(one.document, ESCROW).ring) == secrets(unlocked.ring)
    assert failure(lambda: remove_protector(one, "pr_2")).exit_code == Exit.LAST_PROTECTOR
    assert failure(lambda: remove_protector(one, "pr_9")).exit_code == Exit.PROTECTOR_UNKNOWN


def test_changed_protector_has_a_new_secret_and_a_new_protector_key(unlocked: Unlocked) -> None:
    changed = change_protector(unlocked, "pr_1", passphrase(NEW_PASSPHRASE))
    assert secrets(opened(changed.document, passphrase(NEW_PASSPHRASE)).ring) == secrets(unlocked.ring)
    assert failure(lambda: opened(changed.document)).exit_code == Exit.WRONG_SECRET
    before, after = (
        kept_protector_key(VOLUME_ID, one.document.protectors[0], one.master) for one in (unlocked, changed)
    )
    assert before != after


@pytest.mark.parametrize("label", ["two\nlines", "x" * 64, "\x1b[31m"])
def test_label_that_spoils_a_terminal_is_refused(unlocked: Unlocked, label: str) -> None:
    assert failure(lambda: add_protector(unlocked, ESCROW, label)).exit_code == Exit.USAGE


def test_new_master_key_opens_with_every_protector_without_its_secret(unlocked: Unlocked) -> None:
    both, _ = add_protector(unlocked, ESCROW, "")
    # Unlocked by the passphrase alone: the escrow's command is not asked.
    new = rotate_master_key(opened(both.document))
    assert new.master.name == "mk_2"
    assert new.master.secret != unlocked.master.secret
    for protector in (passphrase(), ESCROW):
        again = opened(new.document, protector)
        assert again.master == new.master
        assert secrets(again.ring) == secrets(unlocked.ring)
    names = [(entry.name, entry.current, entry.retired is None) for entry in new.document.master_keys]
    assert names == [("mk_1", False, False), ("mk_2", True, True)]
    twice = opened(rotate_master_key(new).document, ESCROW)
    assert twice.master.name == "mk_3"


def test_old_master_key_opens_nothing_of_the_new_keystore(unlocked: Unlocked) -> None:
    new = rotate_master_key(unlocked)
    forged = sign(new.document, unlocked.master)
    assert "without the master key" in failure(lambda: opened(forged)).detail
    old_name = replace(new.master, secret=unlocked.master.secret)
    assert failure(lambda: kept_protector_key(VOLUME_ID, new.document.protectors[0], old_name))


def test_history_key_survives_a_new_master_key(unlocked: Unlocked) -> None:
    def key_of(one: Unlocked) -> bytes:
        assert one.document.history is not None
        return open_history_key(VOLUME_ID, one.document.history, one.master)

    assert key_of(opened(rotate_master_key(unlocked).document)) == key_of(unlocked)


def test_new_round_is_current_and_the_old_ones_stay_readable(unlocked: Unlocked) -> None:
    ring = opened(rotate_data_key(unlocked, "dk_1").document).ring
    assert ring.current("dk_1").round == 2
    assert ring.get("dk_1", 1) == unlocked.ring.get("dk_1", 1)
    assert ring.get("dk_1", 2).secret != ring.get("dk_1", 1).secret
    assert ring.current("dk_2").round == 1


def test_created_data_key_is_there_once(unlocked: Unlocked) -> None:
    new = create_data_key(unlocked, "payroll")
    ring = opened(new.document).ring
    assert ring.names() == ["dk_1", "dk_2", "payroll"]
    assert ring.default_name == "dk_1"
    assert failure(lambda: create_data_key(new, "payroll")).exit_code == Exit.DATA_KEY_EXISTS


@pytest.mark.parametrize("name", ["Bad", "3_dk", "a" * 32])
def test_impossible_data_key_is_a_usage_error(unlocked: Unlocked, name: str) -> None:
    assert failure(lambda: create_data_key(unlocked, name)).exit_code == Exit.USAGE


def test_revoked_round_reads_old_files_and_gets_no_new_ones(unlocked: Unlocked) -> None:
    rotated = rotate_data_key(unlocked, "dk_1")
    ring = opened(revoke_rounds(rotated, "dk_1", 2).document).ring
    assert ring.current("dk_1").round == 1
    assert ring.get("dk_1", 2).round == 2
    revoked = opened(revoke_rounds(unlocked, "dk_2").document).ring
    assert failure(lambda: revoked.current("dk_2")).exit_code == Exit.DATA_KEY_REVOKED
    assert revoked.get("dk_2", 1) == unlocked.ring.get("dk_2", 1)


def test_last_active_round_of_the_default_key_cannot_be_revoked(unlocked: Unlocked) -> None:
    assert failure(lambda: revoke_rounds(unlocked, "dk_1")).exit_code == Exit.DATA_KEY_NEEDED
    rotated = rotate_data_key(unlocked, "dk_1")
    once = revoke_rounds(rotated, "dk_1", 1)
    assert failure(lambda: revoke_rounds(once, "dk_1", 2)).exit_code == Exit.DATA_KEY_NEEDED
    assert failure(lambda: revoke_rounds(rotated, "dk_1")).exit_code == Exit.DATA_KEY_NEEDED
    assert failure(lambda: revoke_rounds(rotated, "dk_1", 7)).exit_code == Exit.DATA_KEY_UNKNOWN
    assert failure(lambda: revoke_rounds(rotated, "dk_7")).exit_code == Exit.DATA_KEY_UNKNOWN


def test_destroyed_round_is_gone_but_for_its_fingerprint(unlocked: Unlocked) -> None:
    assert failure(lambda: destroy_rounds(unlocked, "dk_2")).exit_code == Exit.DATA_KEY_NEEDED
    revoked = revoke_rounds(rotate_data_key(unlocked, "dk_2"), "dk_2", 1)
    assert failure(lambda: destroy_rounds(revoked, "dk_2")).exit_code == Exit.DATA_KEY_NEEDED
    destroyed = opened(destroy_rounds(revoked, "dk_2", 1).document)
    before, after = (one.document.data_keys[1].rounds[0] for one in (revoked, destroyed))
    assert (after.state, after.wrapped, after.wrapped_by) == ("destroyed", None, None)
    assert (after.fingerprint, after.revoked) == (before.fingerprint, before.revoked)
    assert failure(lambda: destroyed.ring.get("dk_2", 1)).exit_code == Exit.DATA_KEY_DESTROYED
    assert destroyed.ring.current("dk_2").round == 2
    # and it stays so
    later = opened(rotate_data_key(rotate_master_key(destroyed), "dk_2").document)
    assert [one.state for one in later.document.data_keys[1].rounds] == ["destroyed", "active", "active"]


def test_every_change_has_a_higher_revision(unlocked: Unlocked) -> None:
    changes: list[Callable[[Unlocked], Unlocked]] = [
        lambda one: add_protector(one, ESCROW, "")[0],
        lambda one: change_protector(one, "pr_2", ESCROW),
        lambda one: remove_protector(one, "pr_2"),
        lambda one: create_data_key(one, "dk_3"),
        lambda one: rotate_data_key(one, "dk_3"),
        lambda one: revoke_rounds(one, "dk_3"),
        lambda one: destroy_rounds(one, "dk_3"),
        rotate_master_key,
    ]
    for change in changes:
        before = unlocked.ring.revision
        unlocked = opened(change(unlocked).document)
        assert unlocked.ring.revision == before + 1

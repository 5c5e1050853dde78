"""The kind vault-transit against a real server: what the transit key may go through, and what each thing means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.protectors.base import NotMineError
from tests.keysources.vault.described import CONTEXT, SECRET, Described, altered


def test_wrapped_is_unwrapped_and_nothing_of_it_is_in_the_clear(transit: Described) -> None:
    entry = transit.wrap()
    assert transit.unwrap(entry) == SECRET
    assert entry.params["key_version"] == 1
    assert entry.params["associated_data"] == 1
    assert SECRET not in entry.wrapped


def test_another_context_does_not_open_it(transit: Described) -> None:
    entry = transit.wrap()
    for other in (replace(CONTEXT, volume_id=b"w" * 16), replace(CONTEXT, wrapped_by="pr_2")):
        with pytest.raises(TdefsError) as caught:
            transit.unwrap(entry, other)
        assert caught.value.exit_code is Exit.WRONG_SECRET


def test_the_server_itself_is_told_the_volume(transit: Described) -> None:
    entry = transit.wrap()
    decrypt = transit.server.admin.secrets.transit.decrypt_data
    with pytest.raises(Exception, match="authentication failed"):
        decrypt(transit.name, entry.params["ciphertext"])


def test_after_a_rotation_old_ciphertext_opens_and_the_new_version_is_used_next(transit: Described) -> None:
    old = transit.wrap()
    transit.server.admin.secrets.transit.rotate_key(transit.name)
    new = transit.wrap()
    assert (old.params["key_version"], new.params["key_version"]) == (1, 2)
    assert transit.unwrap(old) == transit.unwrap(new) == SECRET


def test_a_version_below_min_decryption_version_is_unusable(transit: Described) -> None:
    entry = transit.wrap()
    engine = transit.server.admin.secrets.transit
    engine.rotate_key(transit.name)
    engine.update_key_configuration(transit.name, min_decryption_version=2)
    error = transit.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE)
    assert "min_decryption_version is 2" in error.detail
    engine.update_key_configuration(transit.name, min_decryption_version=1)
    assert transit.unwrap(entry) == SECRET


def test_a_deleted_key_is_unusable_and_not_made_anew(transit: Described) -> None:
    entry = transit.wrap()
    engine = transit.server.admin.secrets.transit
    engine.update_key_configuration(transit.name, deletion_allowed=True)
    engine.delete_key(transit.name)
    assert "does not exist" in transit.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE).message
    # Even somebody with all rights, for whom encrypting would make the key.
    transit.credential("token", transit.server.admin.token)
    with pytest.raises(TdefsError) as caught:
        transit.wrap()
    assert caught.value.exit_code is Exit.WRAPPING_KEY_UNUSABLE
    with pytest.raises(Exception, match="None"):
        engine.read_key(transit.name)


def test_another_key_of_the_same_name_is_told(transit: Described) -> None:
    engine = transit.server.admin.secrets.transit
    engine.rotate_key(transit.name)
    newest = transit.wrap()
    engine.update_key_configuration(transit.name, deletion_allowed=True)
    engine.delete_key(transit.name)
    engine.create_key(transit.name)
    assert "no version 2" in transit.refusal(newest, Exit.WRAPPING_KEY_UNUSABLE).message
    engine.rotate_key(transit.name)
    assert "does not open" in transit.refusal(newest, Exit.WRONG_SECRET).message


def test_a_soft_deleted_key_is_unusable_until_it_is_restored(transit: Described) -> None:
    entry = transit.wrap()
    place = f"/v1/transit/keys/{transit.name}/soft-delete"
    transit.server.admin.adapter.delete(place)
    assert "is deleted" in transit.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE).message
    transit.server.admin.adapter.post(f"{place}-restore")
    assert transit.unwrap(entry) == SECRET


def test_a_key_without_associated_data_serves(transit: Described) -> None:
    rsa = f"{transit.name}-rsa"
    transit.server.admin.secrets.transit.create_key(rsa, key_type="rsa-2048")
    transit.credential("token", transit.server.token(transit.server.policy("transit", rsa)))
    transit.fields["key_name"] = rsa
    entry = transit.wrap()
    assert entry.params["associated_data"] == 0
    assert transit.unwrap(entry) == SECRET
    with pytest.raises(TdefsError) as caught:
        transit.unwrap(entry, replace(CONTEXT, volume_id=b"w" * 16))
    assert caught.value.exit_code is Exit.WRONG_SECRET


def test_a_key_that_does_not_encrypt_is_refused(transit: Described) -> None:
    signing = f"{transit.name}-ed"
    transit.server.admin.secrets.transit.create_key(signing, key_type="ed25519")
    transit.credential("token", transit.server.token(transit.server.policy("transit", signing)))
    transit.fields["key_name"] = signing
    with pytest.raises(TdefsError) as caught:
        transit.wrap()
    assert transit.checked(caught.value, Exit.WRAPPING_KEY_UNUSABLE).message.endswith("does not encrypt")


def test_a_derived_key_takes_the_context_and_keeps_it(transit: Described) -> None:
    derived = f"{transit.name}-derived"
    transit.server.admin.secrets.transit.create_key(derived, derived=True)
    transit.credential("token", transit.server.token(transit.server.policy("transit", derived)))
    transit.fields["key_name"] = derived
    with pytest.raises(TdefsError) as caught:
        transit.wrap()
    assert "needs a context" in transit.checked(caught.value, Exit.CONFIG_INVALID).message
    transit.fields["context"] = "payroll"
    entry = transit.wrap()
    assert entry.params["context"] == "payroll"
    assert transit.unwrap(entry) == SECRET
    # What was wrapped with the old one opens when the configuration has another.
    transit.fields["context"] = "sales"
    assert transit.unwrap(entry) == SECRET
    assert transit.refusal(altered(entry, context="sales"), Exit.WRONG_SECRET)


def test_a_context_without_effect_is_refused(transit: Described) -> None:
    transit.fields["context"] = "payroll"
    with pytest.raises(TdefsError) as caught:
        transit.wrap()
    assert "no effect" in transit.checked(caught.value, Exit.CONFIG_INVALID).message


@pytest.mark.parametrize(
    "params",
    [
        {"key_version": 2},
        {"key_version": "1"},
        {"ciphertext": "vault:v1:"},
        {"ciphertext": 7},
        {"context": "\u00e9"},
        {"associated_data": 2},
        {"mount": 1},
        {"more": "x"},
    ],
)
def test_parameters_that_are_never_written_are_damage(transit: Described, params: dict[str, str | int]) -> None:
    entry = transit.wrap()
    assert transit.refusal(altered(entry, **params), Exit.KEYSTORE_DAMAGED)


def test_a_ciphertext_that_was_altered_is_told(transit: Described) -> None:
    entry = transit.wrap()
    text = str(entry.params["ciphertext"])
    other = text[:-8] + ("AAAAAAAA" if text[-8:] != "AAAAAAAA" else "BBBBBBBB")
    for one in (other, "vault:v1:AAAA"):
        assert transit.refusal(altered(entry, ciphertext=one), Exit.WRONG_SECRET)


@pytest.mark.parametrize("field", ["namespace", "mount", "key_name"])
def test_an_entry_of_another_key_is_not_its_own(transit: Described, field: str) -> None:
    entry = transit.wrap()
    for other in (altered(entry, **{field: "other"}), replace(entry, kind="vault-kv")):
        with pytest.raises(NotMineError):
            transit.unwrap(other)

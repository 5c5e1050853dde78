"""The kind vault-kv against a real server: versions, check-and-set, and what becomes of a path."""

from __future__ import annotations

import base64
import secrets
import shlex
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import hvac.exceptions
import pytest

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import NotMineError
from tests.keysources.vault.described import CONTEXT, SECRET, Described, altered


def path_of(kv: Described) -> str:
    return str(kv.fields["path"])


def engine(kv: Described) -> Any:
    return kv.server.admin.secrets.kv.v2


def put(kv: Described, **data: str) -> None:
    """Writes a version as an administrator does."""
    engine(kv).create_or_update_secret(path_of(kv), data, mount_point="kv")


def new_key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def wrap_refusal(kv: Described, expected: Exit) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        kv.wrap()
    return kv.checked(caught.value, expected)


def test_the_key_is_made_once_and_used_again(kv: Described) -> None:
    first = kv.wrap()
    second = kv.wrap()
    assert first.params == second.params
    assert first.wrapped != second.wrapped
    assert kv.unwrap(first) == kv.unwrap(second) == SECRET
    metadata = engine(kv).read_secret_metadata(path_of(kv), mount_point="kv")
    assert metadata["data"]["current_version"] == 1


def test_who_made_the_key_knows_the_command_that_removes_it(kv: Described) -> None:
    source, later = kv.source(), kv.source()
    made = [one.made(kv.wrap(one)) for one in (source, later)]
    assert made[1] is None
    assert made[0] is not None
    assert made[0].what == f'the wrapping key at "kv/{path_of(kv)}"'
    assert "another host may do so already" in made[0].kept
    words = shlex.split(made[0].removal)
    assert words[0] == "vault"
    kv.server.command(*words[1:])
    with pytest.raises(hvac.exceptions.InvalidPath):
        engine(kv).read_secret_metadata(path_of(kv), mount_point="kv")


def test_another_context_does_not_open_it(kv: Described) -> None:
    entry = kv.wrap()
    for other in (replace(CONTEXT, volume_id=b"w" * 16), replace(CONTEXT, wrapped_by="pr_2")):
        with pytest.raises(TdefsError) as caught:
            kv.unwrap(entry, other)
        assert caught.value.exit_code is Exit.WRONG_SECRET


def test_hosts_that_make_the_key_at_the_same_time_use_the_same(kv: Described) -> None:
    kv.write()
    sources = [kv.source() for _ in range(4)]
    start = threading.Barrier(len(sources))
    entries: list[ProtectorEntry] = []

    def wrap(index: int) -> None:
        start.wait()
        made = sources[index].wrap(SECRET, CONTEXT)
        entries.append(replace(model, params=made.params, wrapped=made.wrapped))

    model = ProtectorEntry("pr_1", kv.kind, datetime.now(UTC), "mk_1", {}, b"")
    threads = [threading.Thread(target=wrap, args=(index,)) for index in range(len(sources))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [kv.unwrap(entry) for entry in entries] == [SECRET] * len(sources)
    metadata = engine(kv).read_secret_metadata(path_of(kv), mount_point="kv")
    assert metadata["data"]["current_version"] == 1


@pytest.mark.parametrize("all_rights", [False, True])
def test_the_host_that_comes_second_does_not_overwrite(
    kv: Described, monkeypatch: pytest.MonkeyPatch, all_rights: bool
) -> None:
    if all_rights:
        kv.credential("token", kv.server.admin.token)
    source: Any = kv.source()
    read = source._read
    asked: list[Any] = []

    def late(*arguments: Any) -> Any:
        """Between a host's look and its writing, another one writes."""
        found = read(*arguments)
        if not asked:
            put(kv, key=key)
        asked.append(found)
        return found

    key = new_key()
    monkeypatch.setattr(source, "_read", late)
    source.wrap(SECRET, CONTEXT)
    assert asked[0] is None
    kept = engine(kv).read_secret_version(path_of(kv), mount_point="kv", raise_on_deleted_version=True)
    assert kept["data"]["data"]["key"] == key
    assert kept["data"]["metadata"]["version"] == 1


def test_a_new_version_is_used_next_and_the_old_one_still_opens(kv: Described) -> None:
    old = kv.wrap()
    put(kv, key=f"{new_key()}\n")
    new = kv.wrap()
    assert (old.params["key_version"], new.params["key_version"]) == (1, 2)
    assert kv.unwrap(old) == kv.unwrap(new) == SECRET


def test_a_deleted_version_is_unusable_until_it_is_restored(kv: Described) -> None:
    entry = kv.wrap()
    engine(kv).delete_secret_versions(path_of(kv), [1], mount_point="kv")
    error = kv.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE)
    assert error.message.endswith("is deleted")
    assert "kv undelete" in error.detail
    assert wrap_refusal(kv, Exit.WRAPPING_KEY_UNUSABLE).message.endswith("is deleted")
    engine(kv).undelete_secret_versions(path_of(kv), [1], mount_point="kv")
    assert kv.unwrap(entry) == SECRET


def test_a_destroyed_version_is_unusable_for_ever(kv: Described) -> None:
    entry = kv.wrap()
    engine(kv).destroy_secret_versions(path_of(kv), [1], mount_point="kv")
    error = kv.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE)
    assert error.message.endswith("is destroyed")
    assert "cannot restore a destroyed version" in error.detail
    assert "another protector" in error.hint


def test_a_removed_path_is_unusable_and_one_made_anew_is_told(kv: Described) -> None:
    entry = kv.wrap()
    engine(kv).delete_metadata_and_all_versions(path_of(kv), mount_point="kv")
    assert "has no version 1" in kv.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE).message
    put(kv, key=new_key())
    assert "does not open" in kv.refusal(entry, Exit.WRONG_SECRET).message


def test_a_version_that_max_versions_has_dropped_is_unusable(kv: Described) -> None:
    entry = kv.wrap()
    engine(kv).update_metadata(path_of(kv), max_versions=1, mount_point="kv")
    put(kv, key=new_key())
    assert "has no version 1" in kv.refusal(entry, Exit.WRAPPING_KEY_UNUSABLE).message


def test_a_key_that_will_be_deleted_by_itself_is_refused(kv: Described) -> None:
    engine(kv).update_metadata(path_of(kv), delete_version_after="1h", mount_point="kv")
    put(kv, key=new_key())
    assert "will be deleted" in wrap_refusal(kv, Exit.WRAPPING_KEY_UNUSABLE).message


@pytest.mark.parametrize("data", [{"password": "x"}, {"key": "x"}, {"key": base64.b64encode(b"x" * 31).decode()}])
def test_a_path_that_holds_something_else_is_refused_and_left(kv: Described, data: dict[str, str]) -> None:
    put(kv, **data)
    assert "32 bytes in base64" in wrap_refusal(kv, Exit.WRAPPING_KEY_UNUSABLE).detail
    kept = engine(kv).read_secret_version(path_of(kv), mount_point="kv", raise_on_deleted_version=True)
    assert kept["data"]["data"] == data


def test_without_the_right_to_create_a_missing_key_is_refused(kv: Described) -> None:
    kv.server.admin.sys.create_or_update_policy(
        kv.policy, f'path "kv/data/{path_of(kv)}" {{ capabilities = ["read"] }}'
    )
    assert f"create and read on kv/data/{path_of(kv)}" in wrap_refusal(kv, Exit.KEY_SERVER_REFUSED).detail
    put(kv, key=new_key())
    assert kv.unwrap(kv.wrap()) == SECRET


@pytest.mark.parametrize(
    "params", [{"key_version": 0}, {"key_version": "1"}, {"path": 1}, {"mount": "a b"}, {"more": "x"}]
)
def test_parameters_that_are_never_written_are_damage(kv: Described, params: dict[str, str | int]) -> None:
    assert kv.refusal(altered(kv.wrap(), **params), Exit.KEYSTORE_DAMAGED)


@pytest.mark.parametrize("field", ["namespace", "mount", "path"])
def test_an_entry_of_another_path_is_not_its_own(kv: Described, field: str) -> None:
    entry = kv.wrap()
    for other in (altered(entry, **{field: "other"}), replace(entry, kind="vault-transit")):
        with pytest.raises(NotMineError):
            kv.unwrap(other)

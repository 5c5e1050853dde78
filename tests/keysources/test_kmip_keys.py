"""The wrapping key of the KMIP key source: which one is used, in which states, and what a keystore keeps of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kmip.services.server.session import KmipSession

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import parse_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.failures import UnusableError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import NotMineError, WrongSecretError
from tdefs.keys.sources.base import make_key_source
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.source import KmipSource
from tests.keysources.kmip_scene import CONTEXT, SECRET, KmipScene, entry_of, refusal
from tests.support.workspace import Workspace

UNUSABLE = Exit.WRAPPING_KEY_UNUSABLE


@pytest.fixture(scope="module")
def scene(workspace: Workspace) -> Iterator[KmipScene]:
    scene = KmipScene(workspace.directory("kmip"))
    scene.server()
    yield scene
    scene.stop_since()


@pytest.fixture
def source(scene: KmipScene) -> KmipSource:
    return scene.cluster_source()


def state(source: KmipSource, uid: str) -> str:
    return next((key.state for key in source.list_keys() if key.uid == uid), "not there")


def active_key(source: KmipSource, name: str) -> str:
    uid = source.create_key(name)
    source.activate_key(uid)
    return uid


def unlock_refusal(source: KmipSource, entry: ProtectorEntry) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        source.unwrap(entry, CONTEXT)
    return caught.value


def test_key_that_was_made_and_cannot_be_used_is_destroyed(
    source: KmipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a server that gives no key away."""

    def kept(client: Client, uid: str) -> bytes:
        raise UnusableError("the key is not given away")

    before = source.list_keys()
    monkeypatch.setattr(Client, "get", kept)
    assert "is not given away" in refusal(source).message
    assert source.list_keys() == before


def test_without_a_named_key_each_protector_gets_one_of_its_own(source: KmipSource) -> None:
    entries = [entry_of(source.wrap(SECRET, CONTEXT)) for _ in range(2)]
    assert entries[0].params["key"] != entries[1].params["key"]
    for entry in entries:
        assert source.unwrap(entry, CONTEXT) == SECRET
        assert source.made_for(entry) == entry.params["key"]
        key = next(one for one in source.list_keys() if one.uid == entry.params["key"])
        assert key.state == "active"
        assert key.name is not None
        assert key.name.startswith(f"tdefs-{CONTEXT.volume_id.hex()}-")
        source.forget(entry)
        assert state(source, str(entry.params["key"])) == "not there"
        # once more, as after an answer that got lost
        source.forget(entry)


def test_a_key_named_by_id_or_by_name_is_used_and_not_forgotten(scene: KmipScene, source: KmipSource) -> None:
    uid = active_key(source, "by-name")
    for changes in ({"key_id": uid}, {"key_name": "by-name"}):
        named = scene.cluster_source(**changes)
        entry = entry_of(named.wrap(SECRET, CONTEXT))
        assert entry.params == {"key": uid, "created": 0, "source": "kms1"}
        assert named.unwrap(entry, CONTEXT) == SECRET
        assert named.made_for(entry) is None
        named.forget(entry)
        assert state(named, uid) == "active"


def test_by_name_the_active_key_is_used_and_an_older_one_still_unlocks(
    scene: KmipScene, source: KmipSource
) -> None:
    named = scene.cluster_source(key_name="renewed")
    assert "no key named renewed" in refusal(named).message
    first = source.create_key("renewed")
    assert refusal(named).message.endswith("is pre-active")
    source.activate_key(first)
    entry = entry_of(named.wrap(SECRET, CONTEXT))
    second = active_key(source, "renewed")
    assert "2 active keys" in refusal(named).message
    source.revoke_key(first, "superseded")
    assert named.wrap(SECRET, CONTEXT).params["key"] == second
    assert scene.cluster_source(key_name="renewed", deactivated_key="unwrap").unwrap(entry, CONTEXT) == SECRET


def test_a_registered_key_is_the_key_that_was_given(scene: KmipScene, source: KmipSource) -> None:
    secret = bytes(range(32))
    uid = source.register_key("mine", secret)
    source.activate_key(uid)
    assert secret in scene.database.secrets()
    entry = entry_of(scene.cluster_source(key_id=uid).wrap(SECRET, CONTEXT))
    assert source.unwrap(entry, CONTEXT) == SECRET


@pytest.mark.parametrize("reason", ["key-compromise", "ca-compromise", "superseded"])
def test_a_revoked_key_neither_wraps_nor_unlocks(scene: KmipScene, source: KmipSource, reason: str) -> None:
    uid = active_key(source, f"revoked for {reason}")
    named = scene.cluster_source(key_id=uid)
    entry = entry_of(named.wrap(SECRET, CONTEXT))
    source.revoke_key(uid, reason)
    # ca-compromise should lead to compromised, too, by the standard; PyKMIP's server sees it otherwise
    expected = "compromised" if reason == "key-compromise" else "deactivated"
    for error in (refusal(named), unlock_refusal(named, entry)):
        assert error.exit_code is UNUSABLE
        assert error.message == f"the key {uid} on the key server is {expected}"


def test_the_configuration_may_let_a_deactivated_key_unlock_but_no_compromised_one(
    scene: KmipScene, source: KmipSource, capfd: pytest.CaptureFixture[str]
) -> None:
    permitting = scene.cluster_source(deactivated_key="unwrap")
    entry = entry_of(permitting.wrap(SECRET, CONTEXT))
    uid = str(entry.params["key"])
    source.revoke_key(uid, "superseded")
    assert "deactivated_key: unwrap" in unlock_refusal(source, entry).hint
    assert permitting.unwrap(entry, CONTEXT) == SECRET
    assert f"warning: the key {uid} is deactivated" in capfd.readouterr().err
    assert refusal(scene.cluster_source(deactivated_key="unwrap", key_id=uid)).exit_code is UNUSABLE
    source.revoke_key(uid, "key-compromise")
    assert unlock_refusal(permitting, entry).message.endswith("is compromised")


def test_a_destroyed_key_unlocks_nothing(source: KmipSource) -> None:
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    uid = str(entry.params["key"])
    with pytest.raises(TdefsError) as caught:
        source.destroy_key(uid)
    assert caught.value.exit_code is Exit.KEY_SERVER_REFUSED
    assert "revoke it first" in caught.value.hint
    source.revoke_key(uid, "unspecified")
    source.destroy_key(uid)
    error = unlock_refusal(source, entry)
    assert error.exit_code is UNUSABLE
    assert "has no such key" in error.message


def test_the_entry_of_another_key_source_is_not_ours(scene: KmipScene, source: KmipSource) -> None:
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    other = scene.cluster_source(name="kms2")
    # the same servers under another name: a standby may call them so
    assert other.unwrap(entry, CONTEXT) == SECRET
    with pytest.raises(NotMineError):
        scene.cluster_source(key_id="another").unwrap(entry, CONTEXT)
    with pytest.raises(NotMineError):
        source.unwrap(replace(entry, kind="passphrase"), CONTEXT)
    # an identifier that its own servers know and these do not
    foreign = replace(entry, params={**entry.params, "key": "4711"})
    with pytest.raises(NotMineError):
        other.unwrap(foreign, CONTEXT)
    assert unlock_refusal(source, foreign).exit_code is UNUSABLE
    # or under which these have another key
    second = active_key(source, "an id twice")
    with pytest.raises(WrongSecretError):
        source.unwrap(replace(entry, params={**entry.params, "key": second}), CONTEXT)


def test_no_key_is_in_what_the_library_logs(
    scene: KmipScene, source: KmipSource, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("test").debug("so much is logged")
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    source.unwrap(entry, CONTEXT)
    given = source.register_key("logged?", os.urandom(32))
    captured = capfd.readouterr()
    said = caplog.text + captured.out + captured.err
    assert "so much is logged" in said
    for secret in (SECRET, *scene.database.secrets()):
        for form in (secret.hex(), repr(secret)[2:-1], str(list(secret))[1:-1]):
            assert form.lower() not in said.lower()
    source.destroy_key(given)
    source.forget(entry)


def test_an_entry_is_bound_to_its_place(source: KmipSource) -> None:
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    for context in (replace(CONTEXT, volume_id=bytes(16)), replace(CONTEXT, key_name="pr_2")):
        with pytest.raises(WrongSecretError):
            source.unwrap(entry, context)
    source.forget(entry)


def test_parameters_that_are_never_written_are_damage(source: KmipSource) -> None:
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    right: dict[str, str | int] = {"key": "1", "created": 1, "source": "kms1"}
    wrong: list[dict[str, str | int]] = [
        {},
        {"key": "1", "created": 1},
        {**right, "created": 2},
        {**right, "key": 1},
        {**right, "key": ""},
        {**right, "source": 1},
        {**right, "more": "x"},
    ]
    for params in wrong:
        assert unlock_refusal(source, replace(entry, params=params)).exit_code is Exit.KEYSTORE_DAMAGED
    source.forget(entry)


def test_a_key_whose_creation_was_answered_into_the_void_is_found_again(
    scene: KmipScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(scene.database.secrets())
    send = KmipSession._send_response
    lost: list[bool] = []

    def lose_the_reply_to_the_creation(session: Any, data: bytes) -> None:
        if not lost and len(scene.database.secrets()) > before:
            lost.append(True)
            session._connection.close()
        else:
            send(session, data)

    monkeypatch.setattr(KmipSession, "_send_response", lose_the_reply_to_the_creation)
    patient = scene.cluster_source(patience_seconds="5")
    entry = entry_of(patient.wrap(SECRET, CONTEXT))
    assert lost
    assert len(scene.database.secrets()) == before + 1
    assert patient.unwrap(entry, CONTEXT) == SECRET


@pytest.mark.parametrize("version", ["1.0", "1.4"])
def test_older_and_newer_versions_of_kmip_are_spoken(scene: KmipScene, version: str) -> None:
    source = scene.cluster_source(kmip_version=version)
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    assert source.unwrap(entry, CONTEXT) == SECRET
    source.forget(entry)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"servers": "kms:0"}, "servers"),
        ({"servers": "kms:65536"}, "servers"),
        ({"servers": "::1"}, "servers"),
        ({"servers": "[::1"}, "servers"),
        ({"servers": "https://kms:5696"}, "servers"),
        ({"ca": None}, "ca"),
        ({"certificate": "client.pem"}, "certificate"),
        ({"tls_minimum": "1.1"}, "tls_minimum"),
        ({"kmip_version": "3.0"}, "kmip_version"),
        ({"deactivated_key": "perhaps"}, "deactivated_key"),
        ({"timeout_seconds": "0"}, "timeout_seconds"),
        ({"key_id": "1", "key_name": "a"}, "key_name"),
        ({"user": "me"}, "user"),
    ],
)
def test_wrong_fields_are_named(scene: KmipScene, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TdefsError) as caught:
        scene.source("kms", **changes)
    assert caught.value.exit_code is Exit.CONFIG_INVALID
    assert field in caught.value.message


def test_servers_have_the_port_of_kmip_if_none_is_given() -> None:
    text = """version: 1
key_sources:
  kms1:
    kind: kmip
    servers: [kms, 'kms:1', '[2001:db8::1]', '[::1]:2']
    ca: /etc/ca.pem
    certificate: /etc/client.pem
    private_key: /etc/client.key
"""
    source = make_key_source(parse_config(text.encode(), Path("t.yaml")).key_source("kms1"), TerminalDialogue())
    assert isinstance(source, KmipSource)
    assert [str(one) for one in source.servers] == ["kms:5696", "kms:1", "[2001:db8::1]:5696", "[::1]:2"]

"""The promises of keystore.text: damage is distinguished from everything else, whatever the bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.text import MAX_BYTES, parse, serialise
from tests.unit.keys.keystore_samples import GOLDEN, new_keystore

GOLDEN_DATA = GOLDEN.read_bytes()


def with_checksum(body: bytes) -> bytes:
    return body + f"sha256:{hashlib.sha256(body).hexdigest()}\n".encode()


def golden_object(data: bytes = GOLDEN_DATA) -> dict[str, Any]:
    value = json.loads(data[: data.rindex(b"sha256:")])
    assert isinstance(value, dict)
    return value


def assert_damaged(data: bytes) -> TdefsError:
    with pytest.raises(TdefsError) as caught:
        parse(data)
    assert caught.value.exit_code == Exit.KEYSTORE_DAMAGED
    assert caught.value.render().isascii()
    return caught.value


def test_flipped_bit_anywhere_is_damage_not_wrong_passphrase() -> None:
    for position in range(len(GOLDEN_DATA)):
        for bit in range(8):
            flipped = bytearray(GOLDEN_DATA)
            flipped[position] ^= 1 << bit
            assert_damaged(bytes(flipped))


def test_truncation_at_every_length_is_damage() -> None:
    for length in range(len(GOLDEN_DATA)):
        assert_damaged(GOLDEN_DATA[:length])


@pytest.mark.parametrize("appended", [b"\n", b" ", b"\0", b"x", GOLDEN_DATA])
def test_anything_appended_is_damage(appended: bytes) -> None:
    assert_damaged(GOLDEN_DATA + appended)


def test_file_that_is_too_large_is_damaged_by_its_size_and_not_by_its_checksum() -> None:
    value = golden_object() | {"novelty": "x" * MAX_BYTES}
    error = assert_damaged(with_checksum(json.dumps(value).encode()))
    assert error.detail == "it has more than 1048576 bytes, and tdefs writes none that large"


def test_document_that_could_not_be_read_again_is_not_made() -> None:
    document = parse(GOLDEN_DATA)
    (first, *others) = document.data_keys
    rounds = tuple(replace(first.rounds[-1], round=number) for number in range(1, 3001))
    with pytest.raises(TdefsError) as caught:
        serialise(replace(document, data_keys=(replace(first, rounds=rounds), *others)))
    assert caught.value.exit_code == Exit.KEYSTORE_FULL


def test_document_survives_a_round_trip() -> None:
    document = parse(GOLDEN_DATA)
    assert serialise(document) == GOLDEN_DATA
    assert parse(serialise(document)) == document


def test_path_of_a_volume_may_have_any_bytes() -> None:
    value = golden_object()
    value["volumes"][0]["path"] = os.fsdecode(b"/srv/\xff\n")
    document = parse(with_checksum(json.dumps(value).encode()))
    assert os.fsencode(document.volumes[0].path) == b"/srv/\xff\n"
    assert parse(serialise(document)) == document


def test_file_is_json_that_a_person_can_read_before_its_last_line(tmp_path: Path) -> None:
    new_keystore(tmp_path / "keystore")
    text = (tmp_path / "keystore").read_text(encoding="ascii")
    body, last_line = text[: text.rindex("sha256:")], text[text.rindex("sha256:") :]
    assert last_line == f"sha256:{hashlib.sha256(body.encode()).hexdigest()}\n"
    assert json.loads(body)["data_keys"][0]["name"] == "dk_1"
    assert '\n  "version": 4,\n' in body


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (2, "an older"), (3, "an older"), (5, "a newer")])
def test_another_version_is_named_whatever_else_changed(version: int, age: str) -> None:
    body = json.dumps({"format": "tdefs keystore", "version": version, "novelty": []}).encode()
    error = assert_damaged(with_checksum(body))
    assert error.message == f"the keystore was made by {age} tdefs"
    assert f"format version {version}" in error.detail
    assert "use the tdefs that wrote the keystore" in error.hint


@given(st.binary(max_size=400))
def test_arbitrary_bytes_give_a_keystore_or_a_tdefs_error(data: bytes) -> None:
    assert_damaged(data)
    assert_damaged(with_checksum(data))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["dk_1", "mk_1"]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> list[Callable[[Any], None]]:
    """Return for each place in a JSON value a function that puts another value there."""
    found: list[Callable[[Any], None]] = []
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        found.append(lambda new, key=key: value.__setitem__(key, new))  # type: ignore[misc]
        found.extend(places(member))
    return found


@given(st.data(), json_values)
def test_odd_json_in_any_place_gives_a_keystore_or_a_tdefs_error(data: st.DataObject, odd: Any) -> None:
    value = golden_object()
    data.draw(st.sampled_from(places(value)))(odd)
    try:
        document = parse(with_checksum(json.dumps(value).encode()))
    except TdefsError as error:
        assert error.exit_code == Exit.KEYSTORE_DAMAGED
        assert error.render().isascii()
    else:
        assert parse(serialise(document)) == document


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"format": "tdefs keystore", "version": ' + b"9" * 5000 + b"}",
        b'{"format": "tdefs keystore", "version": true}',
        b'{"format": "tdefs keystore", "version": 1.0}',
        b'{"format": "tdefs keystore", "version": 1, "version": 1}',
        b'{"format": "tdefs keystore", "version": NaN}',
        b'{"format": "tdefs keystore"}',
        b'"tdefs keystore"',
        b"\xff\xfe{}",
        b" " * (1 << 20),
    ],
    ids=["deep", "huge number", "bool", "float", "double", "nan", "bare", "text", "utf-16", "too long"],
)
def test_pathological_json_is_damage(body: bytes) -> None:
    assert_damaged(with_checksum(body))


def edit(path: list[str | int], value: Any) -> bytes:
    whole = golden_object()
    place: Any = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return with_checksum(json.dumps(whole).encode())


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (["volume_id"], "00" * 15, "volume_id"),
        (["volume_id"], "AB" * 16, "volume_id"),
        (["created"], "2026-02-30T00:00:00Z", "created"),
        (["created"], "2026-01-01T00:00:00+01:00", "created"),
        (["master_keys"], [], "master_keys"),
        (["master_keys", 1, "current"], False, "current"),
        (["master_keys", 0, "current"], 1, "true or false"),
        (["master_keys", 1, "name"], "mk_9", "master key that is not there"),
        (["protectors", 0, "kind"], "Passphrase", "kind"),
        (["protectors", 0, "params", "n"], -1, "params.n"),
        (["protectors", 0, "params", "n"], "\ud800", "params.n"),
        (["protectors", 0, "master_key"], "mk_9", "not there"),
        (["data_keys", 0, "name"], "dk_2", "twice"),
        (["data_keys", 0, "default"], False, "default"),
        (["data_keys", 1, "default"], True, "default"),
        (["data_keys", 0, "rounds", 0, "round"], 0, "round"),
        (["data_keys", 0, "rounds", 0, "round"], 2**32, "round"),
        (["data_keys", 0, "rounds", 0, "round"], True, "round"),
        (["data_keys", 0, "rounds", 0, "algorithm"], "rot13", "algorithm"),
        (["data_keys", 0, "rounds", 0, "state"], "unheard", "state"),
        (["data_keys", 0, "rounds", 1, "wrapped_by"], "mk_1", "not current"),
        (["data_keys", 0, "rounds", 1, "wrapped"], "00" * 59, "wrapped"),
        (["data_keys", 0, "rounds", 1, "wrapped"], None, "wrapped"),
        (["data_keys", 0, "rounds", 0, "wrapped_by"], "mk_2", "destroyed"),
        (["data_keys", 0, "rounds", 0, "wrapped"], "00" * 60, "destroyed"),
        (["data_keys", 0, "rounds", 1, "state"], "active", "revoked"),
        (["data_keys", 0, "rounds", 0, "destroyed"], None, "destroyed"),
        (["data_keys", 0, "rounds", 2, "destroyed"], "2026-01-01T00:00:00Z", "destroyed"),
        (["data_keys", 0, "rounds", 0, "fingerprint"], "00" * 7, "fingerprint"),
        (["revision"], 0, "revision"),
        (["protectors", 1, "label"], "two\nlines", "label"),
        (["protectors", 1, "label"], "x" * 64, "label"),
        (["protectors", 0, "kept_key"], "", "kept_key"),
        (["protectors", 0, "wrapped_master_key"], "00" * 61, "wrapped_master_key"),
        (["protectors", 0, "master_key"], "mk_1", "not current"),
        (["history"], None, "history"),
        (["history", "count"], -1, "count"),
        (["history", "wrapped_by"], "mk_1", "not current"),
        (["data_keys", 0, "rounds", 0, "extra"], 1, "exactly the members"),
        (["mac"], "", "mac"),
        (["volumes"], None, "volumes"),
        (["volumes", 0, "id"], "vol_2", "twice"),
        (["volumes", 0, "id"], "Vol", "id"),
        (["volumes", 0, "path"], "srv/tdefs", "absolute path"),
        (["volumes", 0, "path"], "/srv\0", "absolute path"),
        (["volumes", 0, "path"], "/\ud800", "absolute path"),
        (["volumes", 0, "path"], "/" * 4097, "absolute path"),
        (["volumes", 0, "path"], 7, "absolute path"),
        (["volumes", 0, "inode"], -1, "inode"),
        (["volumes", 0, "device"], 2**64, "device"),
        (["volumes", 0, "registered"], None, "registered"),
    ],
)
def test_each_invalid_field_is_named(path: list[str | int], value: Any, complaint: str) -> None:
    assert complaint in assert_damaged(edit(path, value)).detail

"""The manifest's bytes: what is written is what is read, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.keys.keystore.history import append, read_history
from tdefs.keys.keystore.history_checking import HistoryFiles, check_history
from tdefs.manifest.record import BadManifestError, Flag, Listing, Manifest, NodeKind, decode, digest, encode
from tdefs.volume.known import MANIFEST, known_in, note_counter

VOLUME_ID, KEY = bytes(range(16)), bytes(range(32))

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and b"/" not in name)
ROWS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(NodeKind), st.integers(0, 2**63), st.binary(min_size=16, max_size=16)),
    max_size=8,
)


def listing(rows: dict[bytes, tuple[NodeKind, int, bytes]]) -> Listing:
    return Listing.of([(name, *row) for name, row in rows.items()])


@given(st.dictionaries(st.binary(max_size=30), ROWS, max_size=5), st.integers(0, 2**63), st.integers(0, 2**63))
def test_what_is_written_is_what_is_read(
    directories: dict[bytes, dict[bytes, tuple[NodeKind, int, bytes]]], counter: int, older: int
) -> None:
    listings = {path: listing(rows) for path, rows in directories.items()}
    manifest = Manifest(VOLUME_ID, counter, listings, older, Flag.INCOMPLETE)
    found = decode(encode(manifest, KEY), VOLUME_ID, KEY)
    assert found == manifest
    for path, rows in directories.items():
        for name in rows:
            place = found.directories[path].find(name)
            assert tuple(found.directories[path].entry(place)) == rows[name]


def sample() -> bytes:
    rows = {b"PG_VERSION": (NodeKind.FILE, 8195, digest(b"header")), b"base": (NodeKind.DIRECTORY, 0, bytes(16))}
    return encode(Manifest(VOLUME_ID, 7, {b"": listing(rows)}), KEY)


def test_no_byte_can_be_changed_or_cut_off() -> None:
    data = sample()
    for at in range(len(data)):
        with pytest.raises(BadManifestError):
            decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], VOLUME_ID, KEY)
        with pytest.raises(BadManifestError):
            decode(data[:at], VOLUME_ID, KEY)


def test_a_manifest_of_another_volume_or_another_key_is_none() -> None:
    with pytest.raises(BadManifestError, match="another volume"):
        decode(sample(), bytes(16), KEY)
    with pytest.raises(BadManifestError, match="not as it was written"):
        decode(sample(), VOLUME_ID, bytes(32))


def newest_counter(keystore: Path, entry: str) -> int:
    return known_in(check_history(read_history(keystore), KEY, None, 0)).counter(entry)


def test_the_newest_counter_of_a_volume_is_that_of_its_own_records(tmp_path: Path) -> None:
    keystore = tmp_path / "keystore"
    keystore.touch()
    for entry, counter in (("vol_1", 1), ("vol_2", 9), ("vol_1", 2)):
        note_counter(keystore, KEY, entry, counter)
    assert newest_counter(keystore, "vol_1") == 2
    assert newest_counter(keystore, "vol_3") == 0


def test_a_counter_that_was_written_without_the_key_is_not_believed(tmp_path: Path) -> None:
    """Else whoever can write beside the keystore could have every volume pass for an older copy for ever."""
    keystore = tmp_path / "keystore"
    keystore.touch()
    note_counter(keystore, KEY, "vol_1", 1)
    append(keystore, MANIFEST, {"volume": "vol_1", "counter": 1 << 40}, None)
    append(keystore, MANIFEST, {"volume": "vol_1", "counter": 1 << 41}, bytes(32))
    assert newest_counter(keystore, "vol_1") == 1
    append(keystore, "unlock", {}, KEY)  # whose MAC covers the lines before
    assert newest_counter(keystore, "vol_1") == 1
    found = check_history(read_history(keystore), KEY, None, 0)
    assert [one["what"]["counter"] for one in found.by_key if one["event"] == MANIFEST] == [1]
    assert check_history(HistoryFiles(b"junk\n", b""), KEY, None, 0).by_key == []

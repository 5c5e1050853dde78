"""What the path classifier promises. Covers tdefs/policy/paths.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.policy.paths import FileRole, Kind, RelationFile, classify, database_directory

TABLE = [
    line.split(maxsplit=1)
    for line in Path(__file__).with_name("pgdata_paths.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.mark.parametrize(
    "prefix", ["", "15/main/", "data/", "16384/5/"], ids=["pgdata", "debian", "above", "numbers"]
)
@pytest.mark.parametrize(("kind", "path"), TABLE, ids=[path for _, path in TABLE])
def test_each_path_has_its_kind_whatever_lies_above_pgdata(prefix: str, kind: str, path: str) -> None:
    assert classify(prefix + path).kind == kind


def test_the_table_shows_every_kind() -> None:
    assert {kind for kind, _ in TABLE} == set(Kind)


@pytest.mark.parametrize("prefix", ["", "fast_disk/"])
@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path.removeprefix("pg_tblspc/16400/")) for kind, path in TABLE if path.startswith("pg_tblspc/16400/")],
)
def test_a_mounted_tablespace_has_the_kinds_of_pgdata(prefix: str, kind: str, path: str) -> None:
    assert classify(prefix + path) == classify(f"pg_tblspc/16400/{path}")
    assert classify(prefix + path).kind == kind


@pytest.mark.parametrize(
    "path",
    [
        path.removeprefix("pg_wal/")
        for kind, path in TABLE
        if path.startswith("pg_wal/") and "pgbackrest" not in path
    ],
)
def test_a_mounted_wal_directory_has_only_wal(path: str) -> None:
    assert classify(path) == FileRole(Kind.WAL)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("base/16384/16385", RelationFile(16384, 16385, "main", 0)),
        ("base/16384/16385.1", RelationFile(16384, 16385, "main", 1)),
        ("base/16384/16385_fsm.1", RelationFile(16384, 16385, "fsm", 1)),
        ("base/16384/16385_vm", RelationFile(16384, 16385, "vm", 0)),
        ("base/16384/16385_init", RelationFile(16384, 16385, "init", 0)),
        ("15/main/global/1262", RelationFile(0, 1262, "main", 0)),
        ("PG_15_202209061/16384/4294967295.131071", RelationFile(16384, 4294967295, "main", 131071)),
        ("base/16384/t3_16400_vm.2", RelationFile(16384, 16400, "vm", 2)),
        ("16384/16385", RelationFile(16384, 16385, "main", 0)),
        ("base/16384/t3_016400", None),
        ("base/16384/16385_foo", None),
        ("base/16384/16385\n", None),
        ("base/16384/١٦٣٨٥", None),
        ("base/4294967296/16385", None),
        ("base/016384/16385", None),
        ("16385", None),
    ],
)
def test_a_relation_file_is_parsed_exactly(path: str, expected: RelationFile | None) -> None:
    assert classify(path).relation == expected


@pytest.mark.parametrize(
    "name", ["0000000100000000000000a1", "00000001000000000000001", "0000000100000000000000011"]
)
def test_only_24_upper_case_hex_digits_are_a_wal_segment(name: str) -> None:
    assert classify(name).kind is Kind.OTHER


@pytest.mark.parametrize(
    ("path", "database"),
    [
        ("base/5/PG_VERSION", 5),
        ("global/pg_internal.init", 0),
        ("ts/PG_18_202506291/16384/x", 16384),
        ("base/pgsql_tmp/x", None),
        ("PG_VERSION", None),
    ],
)
def test_the_database_of_a_directory_is_known(path: str, database: int | None) -> None:
    assert database_directory(path) == database


path_parts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["base", "global", "PG_15_202209061", "pg_tblspc", "pg_wal", "pg_replslot", "log", "16384", ""]
    ),
    st.from_regex(r"t?[0-9]{0,11}(_[a-z0-9]{1,6})?(\.[0-9]{0,11})?", fullmatch=True),
    st.binary(max_size=8).map(lambda name: name.decode("utf-8", "surrogateescape")),
)


@given(st.lists(path_parts, max_size=6).map("/".join))
def test_any_text_has_a_kind(path: str) -> None:
    role = classify(path)
    assert isinstance(role.kind, Kind)
    if role.kind in (Kind.RELATION, Kind.CATALOG):
        assert role.relation is not None
        assert (role.kind is Kind.CATALOG) == (role.relation.relfilenode < 16384)


@given(
    st.integers(1, 2**32 - 1),
    st.integers(1, 2**32 - 1),
    st.sampled_from(["main", "fsm", "vm", "init"]),
    st.integers(0, 2**32 - 1),
)
def test_every_name_postgresql_can_make_is_read_back(
    database: int, relfilenode: int, fork: str, segment: int
) -> None:
    name = str(relfilenode) + ("" if fork == "main" else f"_{fork}") + (f".{segment}" if segment else "")
    assert classify(f"base/{database}/{name}").relation == RelationFile(database, relfilenode, fork, segment)

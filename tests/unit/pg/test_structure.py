"""What is missed in a cluster, and what is not, since PostgreSQL leaves it so. Covers tdefs/pg/structure.py."""

from __future__ import annotations

import pytest

from tdefs.pg.control import ControlFile
from tdefs.pg.structure import find_gaps

PAGE = 8192
WAL = 16 << 20
SEGMENT = 131072 * PAGE


def cluster(
    *,
    shut_down: bool = True,
    checkpoint: int = 5 * WAL + 40,
    redo: int | None = None,
    xids: tuple[int, int] = (3, 700),
) -> ControlFile:
    state = 1 if shut_down else 6  # DB_SHUTDOWNED, DB_IN_PRODUCTION
    begin = checkpoint if redo is None else redo
    return ControlFile(1300, 202209061, state, PAGE, 131072, True, checkpoint, begin, WAL, xids[1], xids[0])


WHOLE: dict[str, int | None] = {
    "PG_VERSION": 3,
    "global/pg_control": PAGE,
    "global/pg_filenode.map": 512,
    "global/1262": PAGE,
    "base/1/PG_VERSION": 3,
    "base/1/pg_filenode.map": 512,
    "base/1/1259": PAGE,
    "pg_wal/000000010000000000000005": WAL,
    "pg_wal/000000010000000000000006": WAL,
    "pg_xact/0000": PAGE,
}


def gaps(
    changes: dict[str, int | None] | None = None,
    without: tuple[str, ...] = (),
    *,
    control: ControlFile | None = None,
    links: tuple[str, ...] = (),
) -> dict[str, str]:
    lengths = {path: length for path, length in {**WHOLE, **(changes or {})}.items() if path not in without}
    found = list(find_gaps(lengths, {"": control or cluster()}, links.__contains__))
    assert all(gap.hint for gap in found)
    return {gap.path: gap.error for gap in found}


def test_whole_cluster_lacks_nothing() -> None:
    assert gaps() == {}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"base/1/16385.1": 0, "base/1/16385": PAGE}, id="a segment that is no longer needed stays, empty"
        ),
        pytest.param({"base/1/16385": SEGMENT, "base/1/16385.1": PAGE}, id="a full segment before another"),
        pytest.param({"base/1/16385": None, "base/1/16385.1": PAGE}, id="a segment whose length cannot be told"),
        pytest.param({"base/1/16385_init": 0}, id="an unlogged relation of a standby"),
        pytest.param({"base/1/16385_init": 0, "base/1/16385_vm": PAGE}, id="the same with a map"),
        pytest.param({"base/7/16385": PAGE}, id="a database that only has tables there"),
        pytest.param({"base/1/t3_16385_fsm": PAGE}, id="a temporary relation"),
        pytest.param({"pg_wal/00000002.history": 40, "pg_wal/archive_status/x.ready": 0}, id="other files of WAL"),
        pytest.param({"pg_wal/000000010000000000000009": WAL}, id="a gap behind what was needed"),
        pytest.param({"pg_notify/0000": 5, "pg_stat/pgstat.stat": 5}, id="what is thrown away at a start"),
    ],
)
def test_what_postgres_leaves_so_is_not_missed(changes: dict[str, int | None]) -> None:
    assert gaps(changes) == {}


def test_segments_before_others_are_there_and_full() -> None:
    assert gaps({"base/1/16385.2": PAGE, "base/1/16385": SEGMENT}) == {
        "base/1/16385.1": "the segment is missing: there is base/1/16385.2"
    }
    assert gaps({"base/1/16385.1": PAGE, "base/1/16385": PAGE}) == {
        "base/1/16385": f"the segment has {PAGE} bytes, not {SEGMENT}: there is base/1/16385.1"
    }
    assert gaps({"base/1/16385_fsm.1": PAGE, "base/1/16385": 0}) == {
        "base/1/16385_fsm": "the segment is missing: there is base/1/16385_fsm.1"
    }


def test_number_of_a_segment_that_no_relation_reaches_takes_no_time() -> None:
    assert len(gaps({"base/1/16385.4294967295": PAGE})) < 5


@pytest.mark.parametrize("fork", ["fsm", "vm"])
def test_map_without_its_relation_is_missed(fork: str) -> None:
    assert gaps({f"base/1/16385_{fork}": PAGE}) == {
        "base/1/16385": f"the file is missing: there is a {fork} fork and no main fork"
    }


def test_wal_from_the_redo_point_on_is_needed() -> None:
    crashed = cluster(shut_down=False, redo=4 * WAL + 1)
    assert gaps(control=crashed) == {"pg_wal/000000010000000000000004": "the WAL segment is missing"}
    late: dict[str, int | None] = {"pg_wal/000000010000000000000004": WAL, "pg_wal/000000010000000000000008": WAL}
    assert gaps(late, control=crashed) == {"pg_wal/000000010000000000000007": "the WAL segment is missing"}


def test_wal_of_a_newer_timeline_will_do() -> None:
    newer: dict[str, int | None] = {"pg_wal/000000020000000000000005": WAL}
    assert gaps(newer, ("pg_wal/000000010000000000000005",)) == {}


@pytest.mark.parametrize("name", ["backup_label", "standby.signal", "recovery.signal"])
def test_wal_that_comes_from_elsewhere_is_not_missed(name: str) -> None:
    without = tuple(path for path in WHOLE if path.startswith("pg_wal/"))
    assert gaps(None, without) != {}
    assert gaps({name: 0}, without) == {}


def test_what_lies_behind_a_link_is_not_missed() -> None:
    without = tuple(path for path in WHOLE if path.startswith(("pg_wal/", "pg_xact/")))
    assert len(gaps(None, without)) == 2
    assert gaps(None, without, links=("pg_wal", "pg_xact")) == {}


def test_wal_segment_has_one_size() -> None:
    path = "pg_wal/000000010000000000000005"
    assert gaps({path: WAL - PAGE}) == {path: f"a WAL segment has {WAL} bytes, not {WAL - PAGE}"}


def test_states_of_all_transactions_are_there() -> None:
    span = PAGE * 4 * 32
    assert gaps(control=cluster(xids=(3, 2 * span))) == {
        "pg_xact/0001": "the file is missing: it says which transactions were committed"
    }
    # transaction numbers start anew after four thousand million
    around = cluster(xids=((1 << 32) - 5, 700))
    assert list(gaps(control=around)) == ["pg_xact/0FFF"]


def test_states_of_transactions_come_in_pages() -> None:
    error = "the length of 5000 bytes is not a multiple of the page size of 8192"
    assert gaps({"pg_xact/0000": 5000, "pg_multixact/members/0000": 5000}) == {
        "pg_xact/0000": error,
        "pg_multixact/members/0000": error,
    }


@pytest.mark.parametrize("name", ["global", "base"])
def test_directory_that_is_gone_is_missed(name: str) -> None:
    assert gaps(None, tuple(path for path in WHOLE if path.startswith(f"{name}/"))) != {}


def test_nothing_is_missed_where_there_is_no_cluster() -> None:
    assert list(find_gaps({"PG_VERSION": 3, "etc/global/x": 1}, {}, lambda _: False)) == []


def test_incremental_backup_lacks_no_file_of_which_it_has_the_changes() -> None:
    """pg_basebackup --incremental copies maps whole, and of a main fork's segments writes what has changed."""
    changes: dict[str, int | None] = {
        "backup_label": 200,
        "base/1/INCREMENTAL.16384": 3 * PAGE,
        "base/1/16384_fsm": 3 * PAGE,
        "base/1/INCREMENTAL.16385": 12,
        "base/1/INCREMENTAL.16385.1": 2 * PAGE,
        "base/1/16385.2": PAGE,
    }
    assert gaps(changes) == {}
    del changes["base/1/INCREMENTAL.16385.1"]
    assert list(gaps(changes)) == ["base/1/16385.1"]


def test_nothing_is_missed_in_a_cluster_that_pg_upgrade_has_retired() -> None:
    lost = ("global/pg_control", "base/1/pg_filenode.map", "base/1/1259", "pg_xact/0000", "global/pg_filenode.map")
    assert gaps({"global/pg_control.old": PAGE}, lost) == {}
    assert "global/pg_control" in gaps({}, lost)
    # one that was put back by hand is judged again
    assert "pg_xact/0000" in gaps({"global/pg_control.old": PAGE}, lost[1:])

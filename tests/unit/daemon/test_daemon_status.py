"""What a daemon says of itself passes through JSON unchanged. Covers tdefs/daemon/status.py."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tdefs.daemon.status import DaemonStatus, KeyStatus, MalformedStatusError
from tdefs.fuse.measured import Latency
from tdefs.manifest.found import ChangedFile, Tampering
from tests.support.daemon_status import daemon_status

FULL = daemon_status(
    policy="/etc/tdefs/policy.yaml",
    watchdog=None,
    tampering=Tampering("refuse", 7, None, 9, 3, 2, (ChangedFile("base/5/16384", "length", "1 before, 2 now"),)),
    data_keys=(KeyStatus("dk_1", 1, "aes-256-xts", "active"),),
    destroyed_rounds=(("dk_2", 1), ("dk_2", 2)),
    requests={"read": 3},
    failures={"read": 1},
    bytes={"read": 8192},
    latency={"read": Latency(12, (0, 1, 2))},
)


def as_json(status: DaemonStatus) -> Any:
    return json.loads(json.dumps(status.to_json()))


@pytest.mark.parametrize("status", [FULL, daemon_status()])
def test_a_status_comes_back_from_json_as_it_was(status: DaemonStatus) -> None:
    assert DaemonStatus.from_json(as_json(status)) == status


def test_members_that_are_not_known_are_passed_over() -> None:
    assert DaemonStatus.from_json(as_json(FULL) | {"more": [1]}) == FULL


@pytest.mark.parametrize(
    "change",
    [
        {"pid": "1"},
        {"pid": True},
        {"policy": 1},
        {"data_keys": {}},
        {"data_keys": [{"name": "dk_1"}]},
        {"destroyed_rounds": [["dk_1"]]},
        {"requests": {"read": "many"}},
        {"latency": {"read": {"total_us": 1, "buckets": [None]}}},
        {"tampering": {}},
        {"started": 10**400},
        {"started": 1e300},
        {"started": float("nan")},
        {"started": float("inf")},
        {"started": -1e300},
        {"keystore": "/key\0store"},
        {"keystore": "/\ud800"},
        {"open_handles": 10**400},
        {"latency": {"read": {"total_us": 10**400, "buckets": [1]}}},
        {"latency": {"read": {"total_us": 1, "buckets": [1] * 100_000}}},
    ],
)
def test_what_is_no_status_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedStatusError):
        DaemonStatus.from_json(as_json(FULL) | change)


@pytest.mark.parametrize("value", [None, [], "status", {}, {"error": "unknown request"}])
def test_another_answer_is_no_status(value: object) -> None:
    with pytest.raises(MalformedStatusError):
        DaemonStatus.from_json(value)


def test_a_path_that_is_not_utf8_comes_back() -> None:
    status = daemon_status(keystore=os.fsdecode(b"/etc/k\xff"))
    assert DaemonStatus.from_json(as_json(status)) == status


def test_a_status_that_was_written_with_whole_seconds_is_read() -> None:
    assert DaemonStatus.from_json(as_json(FULL) | {"started": 1}).started == 1.0

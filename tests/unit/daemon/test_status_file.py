"""The virtual file of the status is made once for all that ask at a time."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tdefs.daemon import virtual_files
from tdefs.daemon.virtual_files import StatusFile

READERS = 100


class Reports:
    """Stands for what looks at each file of a volume; counts how many do at a time."""

    def __init__(self) -> None:
        self.made = 0
        self.most = 0
        self.fails = False
        self._at_work = 0
        self._lock = threading.Lock()

    def report(self, _volume: Path, _mountpoint: Path, asked: int) -> dict[str, Any]:
        with self._lock:
            self._at_work += 1
            self.most = max(self.most, self._at_work)
        time.sleep(0.05)
        with self._lock:
            self._at_work -= 1
            self.made += 1
        if self.fails:
            raise OSError(5, "no report")
        return {"asked": asked}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    reports = Reports()
    moments = iter(range(1000))
    monkeypatch.setattr(virtual_files, "report", reports.report)
    monkeypatch.setattr(virtual_files, "status_of", lambda _served: next(moments))
    return reports


@pytest.fixture
def file() -> StatusFile:
    request = SimpleNamespace(volume=Path("/volume"), mountpoint=Path("/mount"))
    return StatusFile(cast(Any, SimpleNamespace(request=request)))


def test_many_readers_take_one_thread_and_few_reports(reports: Reports, file: StatusFile) -> None:
    found: list[int] = []

    async def read() -> None:
        found.append(json.loads(await file.content())["asked"])

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.01)
            for _ in range(READERS):
                nursery.start_soon(read)

    trio.run(main)
    assert (reports.made, reports.most) == (2, 1)
    assert sorted(found) == [0] + [1] * READERS, "a report that began before a reader asked is too old for it"


def test_after_an_error_the_next_reader_gets_a_report(reports: Reports, file: StatusFile) -> None:
    reports.fails = True
    with pytest.raises(OSError, match="no report"):
        trio.run(file.content)
    reports.fails = False
    assert json.loads(trio.run(file.content)) == {"asked": 1}
    assert json.loads(trio.run(file.content)) == {"asked": 2}

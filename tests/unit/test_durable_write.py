"""The promises of tdefs.durable."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdefs.durable import write_durably

OLD = b"old " * 100
NEW = b"new " * 5000
CALLS = ("open", "write", "fchmod", "fsync", "close", "rename", "link", "unlink")


class CallCounter:
    """Stands in for the system calls of ``os`` and does something at the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int, stop: Callable[[], None]) -> None:
        self.names: list[str] = []
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name), stop_at, stop))

    def _counted(
        self, name: str, call: Callable[..., Any], stop_at: int, stop: Callable[[], None]
    ) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if len(self.names) == stop_at:
                self.names.append(f"{name} stopped")
                stop()
            self.names.append(name)
            return call(*args, **kwargs)

        return counted


def count_calls(monkeypatch: pytest.MonkeyPatch, path: Path, *, replace: bool) -> list[str]:
    with monkeypatch.context() as patch:
        counter = CallCounter(patch, -1, lambda: None)
        write_durably(path, NEW, replace=replace)
    return counter.names


def test_bytes_are_synced_before_the_name_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replacing = count_calls(monkeypatch, tmp_path / "a", replace=True)
    assert replacing == [
        *("open", "open", "write", "fchmod", "fsync", "close", "rename"),
        *("open", "fsync", "close", "close"),
    ]
    monkeypatch.setattr("tdefs.durable._RENAME_NOREPLACE", 1 << 30)  # as on a file system that does not know it
    creating = count_calls(monkeypatch, tmp_path / "b", replace=False)
    assert creating == [
        *("open", "open", "write", "fchmod", "fsync", "close", "link", "unlink"),
        *("open", "fsync", "close", "close"),
    ]


@pytest.mark.parametrize("replace", [True, False])
def test_crash_before_any_call_leaves_old_or_nothing_or_all_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    calls = len(count_calls(monkeypatch, tmp_path / "probe", replace=replace))
    outcomes = set()
    for stop_at in range(calls):
        path = tmp_path / f"file{stop_at}"
        if replace:
            path.write_bytes(OLD)
        child = os.fork()
        if child == 0:
            with monkeypatch.context() as patch:
                CallCounter(patch, stop_at, lambda: os._exit(77))
                write_durably(path, NEW, replace=replace)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 77
        content = path.read_bytes() if path.exists() else b""
        assert content in ((OLD, NEW) if replace else (b"", NEW))
        outcomes.add(content)
        # What a crash leaves beside it is the owner's alone, and in nobody's way.
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            assert stat.S_IMODE(left.stat().st_mode) == 0o600
        write_durably(path, OLD)
        assert path.read_bytes() == OLD
    assert len(outcomes) == 2


@pytest.mark.parametrize("replace", [True, False])
def test_error_of_any_call_leaves_old_or_nothing_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tdefs.durable._RENAME_NOREPLACE", 1 << 30)
    calls = count_calls(monkeypatch, tmp_path / "probe", replace=replace)
    named = calls.index("rename" if replace else "link")
    for stop_at in range(len(calls)):
        directory = tmp_path / f"{stop_at}"
        directory.mkdir()
        path = directory / "file"
        if replace:
            path.write_bytes(OLD)
        with monkeypatch.context() as patch:
            CallCounter(patch, stop_at, fail)
            with pytest.raises(OSError, match="No space"):
                write_durably(path, NEW, replace=replace)
        if stop_at <= named:
            assert (path.read_bytes() if path.exists() else b"") == (OLD if replace else b"")
        else:
            assert path.read_bytes() == NEW
        assert {entry.name for entry in directory.iterdir()} <= {"file"}


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    write_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("umask", [0, 0o777])
def test_mode_is_what_was_asked_for_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        write_durably(tmp_path / "file", NEW, 0o640)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_without_replace_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError):
        write_durably(path, NEW, replace=False)
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]

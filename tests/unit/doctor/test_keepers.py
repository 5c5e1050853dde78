"""The doctor says where the daemon's user keeps the keys from nobody."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tdefs.doctor import keepers
from tdefs.doctor.keepers import examine_keepers
from tests.support.children import NOBODY, needs_root

pytestmark = needs_root


@pytest.fixture
def nobodys() -> Iterator[int]:
    """A process of nobody."""
    words = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(words) as process:
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            pass
        yield process.pid
        process.kill()


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    directory = tmp_path / "pg"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    return directory


def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    file = tmp_path / "ptrace_scope"
    if value:
        file.write_text(f"{value}\n")
    monkeypatch.setattr(keepers, "_SCOPE", file)


@pytest.mark.parametrize(("value", "free"), [("", True), ("0", True), ("1", False), ("2", False)])
def test_a_daemon_of_the_clusters_user_is_told_with_what_the_kernel_allows(
    nobodys: int, pgdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, free: bool
) -> None:
    scope(tmp_path, monkeypatch, value)
    said = [finding.what for finding in examine_keepers(nobodys, [pgdata])]
    assert "an attacker in the server can get the keys" in said[0]
    assert ["attach itself" in what for what in said[1:]] == ([True] if free else [])


def test_nothing_is_said_of_a_daemon_of_root_or_of_another_user(
    nobodys: int, pgdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope(tmp_path, monkeypatch, "0")
    assert list(examine_keepers(os.getpid(), [pgdata])) == []
    os.chown(pgdata, 0, 0)
    assert list(examine_keepers(nobodys, [pgdata])) == []
    assert list(examine_keepers(nobodys, [])) == []

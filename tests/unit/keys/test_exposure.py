"""The promises of tdefs.keys.private_files: who may have access to a file with a secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tdefs.keys.private_files import exposure

PATH = Path("/srv/it's a key")
QUOTED = """'/srv/it'"'"'s a key'"""
ROOT, DAEMON, STRANGER = 0, 1001, 1002


def status(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, owner, owner, 0, 0, 0, 0))


def run_as(user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)


@pytest.mark.parametrize(("user", "owner"), [(DAEMON, DAEMON), (DAEMON, ROOT), (ROOT, ROOT), (ROOT, STRANGER)])
def test_file_of_the_user_or_of_root_is_closed_and_root_takes_any(
    user: int, owner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(user, monkeypatch)
    assert exposure(PATH, status(stat.S_IFREG | 0o600, owner)) is None


@pytest.mark.parametrize(("kind", "closed"), [(stat.S_IFREG, "600"), (stat.S_IFDIR, "700")])
def test_what_belongs_to_a_stranger_is_exposed_whatever_its_mode(
    kind: int, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(DAEMON, monkeypatch)
    found = exposure(PATH, status(kind | 0o644, STRANGER))
    assert found is not None
    assert found.foreign
    assert found.detail == "its owner is user 1002, and tdefs runs as user 1001"
    assert found.remedy == f"chown 1001 {QUOTED} && chmod {closed} {QUOTED}"


@pytest.mark.parametrize("user", [ROOT, DAEMON])
@pytest.mark.parametrize(("kind", "closed"), [(stat.S_IFREG, "600"), (stat.S_IFDIR, "700")])
@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_any_permission_of_group_or_others_exposes(
    user: int, kind: int, closed: str, bit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(user, monkeypatch)
    found = exposure(PATH, status(kind | 0o600 | bit, user))
    assert found is not None
    assert not found.foreign
    assert found.detail == f"its mode is {0o600 | bit:04o}, and group and others may have no permission"
    assert found.remedy == f"chmod {closed} {QUOTED}"

"""A server for the tests of this folder, and what a configuration says to ask it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keysources.vault.described import Described
from tests.keysources.vault.server import OpenBao
from tests.support.workspace import Workspace


@pytest.fixture(scope="package")
def bao(workspace: Workspace) -> Iterator[OpenBao]:
    """A server. What a test does to the whole of it, it undoes."""
    server = OpenBao(workspace.directory("openbao"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def transit(bao: OpenBao, tmp_path: Path) -> Described:
    """A key source that asks a transit key of its own, with no more rights than the sample policy gives."""
    described = Described(bao, tmp_path, "transit")
    bao.admin.secrets.transit.create_key(described.name)
    return described


@pytest.fixture
def kv(bao: OpenBao, tmp_path: Path) -> Described:
    """A key source that keeps its key at a path of its own."""
    return Described(bao, tmp_path, "kv")


@pytest.fixture(params=["transit", "kv"])
def either(request: pytest.FixtureRequest) -> Described:
    """One of each kind."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Described)
    return found

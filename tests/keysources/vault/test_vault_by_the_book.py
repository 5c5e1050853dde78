"""Somebody who has docs/FORMAT.md alone reads keystores that Vault opens. Covers docs/FORMAT.md."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.keysources.test_by_the_book import read_by_the_book
from tests.keysources.vault.described import Described


@pytest.mark.parametrize("derived", [False, True])
def test_vault_transit(transit: Described, tmp_path: Path, derived: bool) -> None:
    engine = transit.server.admin.secrets.transit
    if derived:
        engine.update_key_configuration(transit.name, deletion_allowed=True)
        engine.delete_key(transit.name)
        engine.create_key(transit.name, derived=True)
        transit.fields["context"] = "cluster 7"

    def fetch(params: dict[str, Any], context: bytes) -> bytes:
        given = {"context": base64.b64encode(params["context"].encode()).decode()} if params["context"] else {}
        if params["associated_data"] == 1:
            given["associated_data"] = base64.b64encode(context).decode()
        given["mount_point"] = params["mount"]
        answer = engine.decrypt_data(params["key_name"], params["ciphertext"], **given)
        return base64.b64decode(answer["data"]["plaintext"], validate=True)

    read_by_the_book(tmp_path / "keystore", transit.source(), fetch)


def test_vault_kv(kv: Described, tmp_path: Path) -> None:
    engine = kv.server.admin.secrets.kv.v2

    def fetch(params: dict[str, Any], _context: bytes) -> bytes:
        answer = engine.read_secret_version(
            params["path"], params["key_version"], mount_point=params["mount"], raise_on_deleted_version=True
        )
        return base64.b64decode(answer["data"]["data"]["key"].strip(), validate=True)

    read_by_the_book(tmp_path / "keystore", kv.source(), fetch)

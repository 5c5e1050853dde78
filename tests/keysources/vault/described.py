"""A key source as a configuration file describes it, asked in this process or by the command line."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import hvac.exceptions
import pytest
import requests
import yaml

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.sources.base import KeySource, make_key_source
from tdefs.keys.wrapping import WrapContext
from tests.keysources.vault.server import OpenBao

CONTEXT = WrapContext(b"v" * 16, "protector key", "mk_1", 0, "pr_1")
SECRET = secrets.token_bytes(32)


class Described:
    """The key source ``bao`` of the kind ``vault-KIND``, in the file ``config``; it asks with a token.

    Tests change ``fields``; what is None is left out.
    """

    def __init__(self, server: OpenBao, directory: Path, kind: str) -> None:
        self.server = server
        self.kind = f"vault-{kind}"
        self.name = f"{kind}-{secrets.token_hex(4)}"
        self.directory = directory / kind
        self.directory.mkdir()
        self.config = self.directory / "tdefs.yaml"
        self.policy = server.policy(kind, self.name)
        self.token = server.token(self.policy)
        place = {"key_name": self.name} if kind == "transit" else {"mount": "kv", "path": f"tdefs/{self.name}"}
        self.fields: dict[str, object] = {
            "address": server.address,
            "ca": str(server.authority.certificate),
            "token_file": self.credential("token", self.token),
            "patience_seconds": 0,
            **place,
        }

    def credential(self, name: str, text: str) -> str:
        """A file with a secret; returns its path."""
        path = self.directory / name
        path.touch(0o600)
        path.write_text(f"{text}\n")
        return str(path)

    def with_role(self, role_id: str, secret_id: str) -> None:
        """Has it log in by AppRole."""
        self.fields |= {
            "auth": "approle",
            "token_file": None,
            "role_id": role_id,
            "secret_id_file": self.credential("secret-id", secret_id),
        }

    def write(self, beside: Described | None = None, **more: object) -> Path:
        """Writes the configuration, with another key source called ``beside``, and returns its path."""
        sources = {"bao": self._described()}
        if beside is not None:
            sources["beside"] = beside._described()
        self.config.write_text(yaml.safe_dump({"version": 1, **more, "key_sources": sources}, sort_keys=False))
        return self.config

    def _described(self) -> dict[str, object]:
        return {"kind": self.kind} | {name: value for name, value in self.fields.items() if value is not None}

    def source(self) -> KeySource:
        return make_key_source(load_config(self.write()).key_source("bao"), TerminalDialogue())

    def wrap(self, source: KeySource | None = None) -> ProtectorEntry:
        """The entry of a keystore in which SECRET is wrapped."""
        made = (source or self.source()).wrap(SECRET, CONTEXT)
        now = datetime.now(UTC)
        return ProtectorEntry("pr_1", self.kind, now, "mk_1", made.params, made.wrapped)

    def unwrap(self, entry: ProtectorEntry, context: WrapContext = CONTEXT) -> bytes:
        return self.source().unwrap(entry, context)

    def refusal(self, entry: ProtectorEntry, expected: Exit) -> TdefsError:
        """The error that unwrapping gives; it shows no secret and carries none."""
        with pytest.raises(TdefsError) as caught:
            self.unwrap(entry)
        return self.checked(caught.value, expected)

    def checked(self, error: TdefsError, expected: Exit) -> TdefsError:
        """The same error, after a look at what it says."""
        assert error.exit_code is expected, error.render()
        assert self.token not in error.render()
        assert error.message[0].islower() or error.message.startswith(str(self.config))
        cause = error.__context__
        while cause is not None:
            # these have the request in them, and so the token
            assert not isinstance(cause, requests.RequestException | hvac.exceptions.VaultError)
            cause = cause.__context__
        return error


def altered(entry: ProtectorEntry, **params: str | int) -> ProtectorEntry:
    """The entry with other parameters."""
    return replace(entry, params={**entry.params, **params})

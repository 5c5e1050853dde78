"""Where the tests of the KMIP key source happen: authorities, keys, servers, and what the configuration says."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.config import parse_config
from tdefs.errors import TdefsError
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import now
from tdefs.keys.protectors.base import WrappedProtectorKey
from tdefs.keys.sources.base import make_key_source
from tdefs.keys.sources.kmip.source import KmipSource
from tdefs.keys.wrapping import WrapContext
from tests.keysources.certificates import Authority, Pair
from tests.keysources.kmip_server import KmipDatabase, KmipServer, PlainServer

CONTEXT = WrapContext(bytes(range(16)), "protector key", "pr_1", 0, "pr_1")
SECRET = bytes(range(100, 132))


class KmipScene:
    """One cluster of KMIP servers with its clients, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        self.client = self.authority.sign("tdefs", client=True)
        self.server_pair = self.authority.sign("server", "127.0.0.1", "localhost", "::1")
        self.database = KmipDatabase(directory)
        self._running: list[KmipServer | PlainServer] = []

    def server(
        self, pair: Pair | None = None, *, version: ssl.TLSVersion | None = None, host: str = "127.0.0.1"
    ) -> KmipServer:
        """A server of the cluster.

        :param version: the only TLS version that it offers
        """
        least, most = version or ssl.TLSVersion.TLSv1_2, version or ssl.TLSVersion.TLSv1_3
        server = KmipServer(
            self.database, pair or self.server_pair, self.authority.path, least=least, most=most, host=host
        )
        self._running.append(server)
        return server

    def plain_server(self, greeting: bytes = b"") -> PlainServer:
        """What is no KMIP server, nor speaks TLS."""
        server = PlainServer(greeting)
        self._running.append(server)
        return server

    def stop_since(self, count: int = 0) -> None:
        """Stops the servers that were started after the first ``count``."""
        for server in self._running[count:]:
            server.stop()
        del self._running[count:]

    @property
    def count(self) -> int:
        """How many servers there are."""
        return len(self._running)

    def fields(self, *servers: str, **changes: Any) -> dict[str, Any]:
        """The fields of a key source; None leaves one out."""
        fields = {
            "kind": "kmip",
            "servers": list(servers),
            "ca": str(self.authority.path),
            "certificate": str(self.client.certificate),
            "private_key": str(self.client.key),
            "timeout_seconds": "10",
            "patience_seconds": "0",
            **changes,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def source(self, *servers: str, name: str = "kms1", **changes: Any) -> KmipSource:
        """The key source that a configuration describes."""
        text = yaml.safe_dump({"version": 1, "key_sources": {name: self.fields(*servers, **changes)}})
        source = make_key_source(parse_config(text.encode(), Path("t.yaml")).key_source(name), TerminalDialogue())
        assert isinstance(source, KmipSource)
        return source

    def cluster_source(self, name: str = "kms1", **changes: Any) -> KmipSource:
        """The key source with all servers that run."""
        return self.source(*self._addresses, name=name, **changes)

    def cluster_fields(self, **changes: Any) -> dict[str, Any]:
        """The fields of the key source with all servers that run."""
        return self.fields(*self._addresses, **changes)

    @property
    def _addresses(self) -> list[str]:
        return [server.address for server in self._running]

    def stop_first(self) -> None:
        """Lets the server that is asked first be down."""
        self._running[0].stop()

    def stop_all(self) -> None:
        """Lets the servers be down for a time."""
        for server in self._running:
            server.stop()

    def start_all(self) -> None:
        """Ends the outage."""
        for server in self._running:
            if isinstance(server, KmipServer):
                server.start()


def entry_of(wrapped: WrappedProtectorKey) -> ProtectorEntry:
    """The entry in a keystore with what a protector has wrapped."""
    return ProtectorEntry("pr_1", "kmip", now(), "mk_1", wrapped.params, wrapped.wrapped)


def wraps_and_unwraps(source: KmipSource) -> None:
    """Has the key source do all that it is for, and clear up behind it."""
    entry = entry_of(source.wrap(SECRET, CONTEXT))
    assert source.unwrap(entry, CONTEXT) == SECRET
    source.forget(entry)


def refusal(source: KmipSource) -> TdefsError:
    """What the key source says that cannot wrap; the error carries no other one, which might hold a secret."""
    with pytest.raises(TdefsError) as caught:
        source.wrap(SECRET, CONTEXT)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    return error

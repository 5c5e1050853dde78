"""PyKMIP's KMIP server, in threads of the tests.

Its engine and its sessions are the ones that its own program starts. Only the listening socket is made here: that
program's allows one TLS version and a fixed list of old ciphers, so TLS 1.3 could not be tested with it.
"""

from __future__ import annotations

import copy
import logging
import socket
import sqlite3
import ssl
import threading
from contextlib import suppress
from pathlib import Path

from kmip.core import policy
from kmip.services.server.engine import KmipEngine
from kmip.services.server.session import KmipSession

from tests.keysources.certificates import Pair


class KmipDatabase:
    """What the servers of a cluster have in common: the keys, and who may use them."""

    def __init__(self, directory: Path) -> None:
        # its session prints tracebacks of broken connections, and its debug messages hold keys
        logging.getLogger("kmip.server").setLevel(logging.CRITICAL)
        self._file = directory / "kmip.sqlite"
        self.engine = KmipEngine(policies=copy.deepcopy(policy.policies), database_path=str(self._file))

    def secrets(self) -> list[bytes]:
        """The bytes of all keys."""
        with sqlite3.connect(self._file) as database:
            return [bytes(value) for (value,) in database.execute("SELECT value FROM managed_objects")]


class KmipServer:
    """One server, listening until it is stopped; it can be started again at the same port."""

    def __init__(
        self,
        database: KmipDatabase,
        pair: Pair,
        client_ca: Path,
        *,
        least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        host: str = "127.0.0.1",
    ) -> None:
        self._database = database
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if least < ssl.TLSVersion.TLSv1_2:
            # Debian's OpenSSL refuses old versions unless it is told to care for nothing
            self._context.set_ciphers("ALL:@SECLEVEL=0")
        self._context.minimum_version, self._context.maximum_version = least, most
        self._context.load_cert_chain(pair.certificate, pair.key)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(client_ca)
        self._host = host
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.port = 0
        self._connections: list[socket.socket] = []
        self.start()

    @property
    def address(self) -> str:
        """What the configuration calls it."""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def start(self) -> None:
        """Listens."""
        self._listener = socket.create_server((self._host, self.port), family=self._family)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections, and ends those there are."""
        # wakes accept, which closing alone does not
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                raw, address = listener.accept()
                try:
                    secured = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                except OSError:  # the client has gone already
                    continue
                self._connections.append(secured)
                session = KmipSession(self._database.engine, secured, address, name=str(address[1]))
                session.daemon = True
                session.start()


class PlainServer:
    """Accepts connections without TLS; says ``greeting``, or nothing for ever."""

    def __init__(self, greeting: bytes = b"") -> None:
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many it has accepted."""
        return len(self._held)

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._held.append(connection)
                if self._greeting:
                    connection.sendall(self._greeting)

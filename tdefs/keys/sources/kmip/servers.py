"""The KMIP servers that the configuration names, which know the same keys: the first that answers is asked."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from tdefs.errors import TdefsError
from tdefs.keys.dialogue import Warn
from tdefs.keys.failures import UnreachableError, UntrustedServerError
from tdefs.keys.sources.asking import Service, TimeLimits
from tdefs.keys.sources.kmip.client import Client
from tdefs.keys.sources.kmip.connection import Connection, Server
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.tls_files import TlsFiles

#: Assigned to KMIP by IANA.
DEFAULT_PORT = 5696
TLS_VERSIONS = ("1.2", "1.3")
#: 2.0 writes attributes in another form. Servers that speak it speak these versions, too.
KMIP_VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4")
_MAX_ID_CHARACTERS = 256
_SERVER = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
#: The least time that a server has to answer, when hardly any patience is left.
_LEAST_SECONDS = 1.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class KmipSettings:
    """The fields of a KMIP key source; ``key_id`` and ``key_name`` are "" if they are not given."""

    name: str
    servers: tuple[Server, ...]
    tls: TlsFiles
    key_id: str
    key_name: str
    tls_minimum: str
    kmip_version: str
    unwrap_deactivated: bool
    limits: TimeLimits


def read_fields(read: SettingsReader) -> KmipSettings:
    """Return the fields.

    :raises TdefsError: CONFIG_INVALID.
    """
    settings = KmipSettings(
        name=read.name,
        servers=tuple(_server(read, text) for text in read.texts("servers")),
        tls=TlsFiles(
            ca=read.path("ca"),
            certificate=read.path("certificate"),
            private_key=read.path("private_key"),
            password_file=read.optional_path("private_key_password_file"),
        ),
        key_id=_identifier(read, "key_id"),
        key_name=_identifier(read, "key_name"),
        tls_minimum=read.choice("tls_minimum", TLS_VERSIONS, TLS_VERSIONS[0]),
        kmip_version=read.choice("kmip_version", KMIP_VERSIONS, "1.2"),
        unwrap_deactivated=read.choice("deactivated_key", ("refuse", "unwrap"), "refuse") == "unwrap",
        limits=TimeLimits.read(read),
    )
    if settings.key_id and settings.key_name:
        raise read.wrong("key_name", "key_id and key_name are both given; one names the key")
    read.finish()
    return settings


def _server(read: SettingsReader, text: str) -> Server:
    match = _SERVER.fullmatch(text)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise read.wrong(
            "servers",
            "an item of servers must be a host, or host:port",
            hint="an IPv6 address stands in brackets: [2001:db8::1]:5696",
        )
    return Server(match["ipv6"] or match["host"], port)


def _identifier(read: SettingsReader, field: str) -> str:
    text = read.text(field, "")
    if len(text) > _MAX_ID_CHARACTERS or not text.isprintable():
        raise read.wrong(field, f"{field} must be a printable text of at most {_MAX_ID_CHARACTERS} characters")
    return text


class Servers(Service[Client]):
    """The servers of a key source, in the order in which they are asked."""

    def __init__(self, settings: KmipSettings, warn: Warn) -> None:
        self._settings = settings
        self._warn = warn
        self._order = list(settings.servers)
        self._warned: set[str] = set()

    @property
    def title(self) -> str:
        return f"the key server{'s' if len(self._order) > 1 else ''} {', '.join(map(str, self._order))}"

    def once(self, call: Callable[[Client], Result], purpose: str, until: float) -> Result:
        """See Service. Each server is asked once; one that has answered is asked first from then on.

        :raises UnreachableError: another attempt may succeed. If no server is trusted, none will.
        """
        failures: list[UnreachableError | UntrustedServerError] = []
        for server in list(self._order):
            left = max(_LEAST_SECONDS, until - time.monotonic())
            seconds = min(self._settings.limits.timeout_seconds, left)
            try:
                with Connection(server, self._tls, seconds) as connection:
                    result = call(Client(connection, self._settings.kmip_version))
            except (UnreachableError, UntrustedServerError) as error:
                failures.append(error)
                continue
            self._warn_of(failures, server)
            self._order = self._order[len(failures) :] + self._order[: len(failures)]
            return result
        if len(failures) > 1 and any(isinstance(one, UnreachableError) for one in failures):
            raise UnreachableError(
                "no key server can be used", "; ".join(f"{one}: {one.detail}" for one in failures)
            )
        raise failures[0]

    def _warn_of(self, failures: Sequence[TdefsError], answered: Server) -> None:
        """Warn once of each server that does not answer although another does: somebody should look at it."""
        for failure in failures:
            if failure.message not in self._warned:
                self._warned.add(failure.message)
                self._warn(f"{failure.message}: {failure.detail}; {answered} answers")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
        return self._settings.tls.context(versions[self._settings.tls_minimum])

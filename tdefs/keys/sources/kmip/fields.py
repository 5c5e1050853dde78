"""What the configuration says about a KMIP key source."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tdefs.keys.sources.asking import TimeLimits
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.tls_files import TlsFiles

#: Assigned to KMIP by IANA.
DEFAULT_PORT = 5696
TLS_VERSIONS = ("1.2", "1.3")
#: 2.0 writes attributes in another form. Servers that speak it speak these versions, too.
KMIP_VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4")
_MAX_ID_CHARACTERS = 256
_SERVER = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server; ``host`` is a name or an IP address, as in its certificate."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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

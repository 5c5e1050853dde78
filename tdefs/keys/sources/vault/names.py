"""The names of things in Vault that tdefs accepts: mounts, keys, paths, namespaces, the address."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from tdefs.keys.sources.settings import SettingsReader, is_loopback

_PART = r"(?!\.+(?:/|$))[A-Za-z0-9_.-]+"
_NAME = re.compile(_PART, re.ASCII)
_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_MAX_CHARACTERS = 512
#: What a keystore may have as such a name; the empty text is allowed.
PLACE = re.compile(r"[!-~]{0,512}", re.ASCII)
_PATH_LIKE = "letters, digits, - _ and . in parts separated by /, such as team1/postgres"


def read_name(read: SettingsReader, field: str) -> str:
    """Return the name of a key, which is one part of a path."""
    name = read.text(field)
    if len(name) > _MAX_CHARACTERS or not _NAME.fullmatch(name):
        raise read.wrong(field, f"{field} must be of letters, digits, - _ and .")
    return name


def read_path(read: SettingsReader, field: str, default: str | None = None) -> str:
    """Return a path, without slashes at its ends; ``default`` may be the empty text, which means no path."""
    path = read.text(field, default)
    if path == default:
        return path
    path = path.strip("/")
    if len(path) > _MAX_CHARACTERS or not _PATH.fullmatch(path):
        raise read.wrong(field, f"{field} must be of {_PATH_LIKE}")
    return path


def read_address(read: SettingsReader) -> str:
    """Return the address ``https://HOST[:PORT]``; ``http`` is for this host only, such as for an agent."""
    text = read.text("address")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    plain = re.fullmatch(r"[a-z]+://[A-Za-z0-9_.:\[\]-]+(?:/[A-Za-z0-9_./-]*)?", text)
    if not plain or not host or parts.scheme not in ("https", "http"):
        raise read.wrong("address", "address must be like https://vault.example.com:8200")
    if parts.scheme == "http" and not is_loopback(host):
        raise read.wrong(
            "address",
            "address must begin with https: the wrapping key and the token would cross the network in the clear",
            hint="http is for 127.0.0.1, ::1 and localhost alone",
        )
    return text.rstrip("/")

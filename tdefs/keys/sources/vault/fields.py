"""The fields of the configuration that all Vault clients share: names, the address, and how the client logs in."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import hvac
import hvac.exceptions
import requests

from tdefs.keys.private_files import read_file, unfit
from tdefs.keys.sources.settings import SettingsReader, is_loopback

_PART = r"(?!\.+(?:/|$))[A-Za-z0-9_.-]+"
_NAME = re.compile(_PART, re.ASCII)
_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_MAX_CHARACTERS = 512
#: What a keystore may have as such a name; the empty text is allowed.
PLACE = re.compile(r"[!-~]{0,512}", re.ASCII)
_PATH_LIKE = "letters, digits, - _ and . in parts separated by /, such as team1/postgres"
#: What a token, role id or secret id is made of. It goes into a header, so it must not contain the end of a line.
_CREDENTIAL = re.compile(rb"[!-~]{1,8192}")


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


class Login(ABC):
    """The identity of the client. Its secret is read from a file each time, since it may be renewed there."""

    #: The path of the auth method, for messages.
    auth_path: str

    @abstractmethod
    def enter(self, client: hvac.Client) -> None:
        """Give ``client`` a token.

        :raises UnavailableError: the file is not fit.
        """

    def leave(self, client: hvac.Client) -> None:
        """Give back what ``enter`` took from the server. The token of another program is not revoked."""
        return

    @abstractmethod
    def refused(self) -> str:
        """Return the possible reasons if the server refuses the login."""


@dataclass(frozen=True)
class TokenFile(Login):
    """A token in a file, such as one that Vault Agent or ``bao agent`` keeps fresh."""

    path: Path
    auth_path: str = "token"

    def enter(self, client: hvac.Client) -> None:
        client.token = _read_credential(self.path, "token", secret=True)

    def refused(self) -> str:
        return f'the token in "{self.path}" has expired, was revoked or is of another namespace'


@dataclass(frozen=True)
class AppRole(Login):
    """A role id, in the configuration or a file, and a secret id in a file."""

    role_id: str
    role_id_file: Path | None
    secret_id_file: Path
    auth_path: str

    def enter(self, client: hvac.Client) -> None:
        role_id = self.role_id
        if self.role_id_file is not None:
            role_id = _read_credential(self.role_id_file, "role id", secret=False)
        secret_id = _read_credential(self.secret_id_file, "secret id", secret=True)
        client.auth.approle.login(role_id, secret_id, mount_point=self.auth_path)

    def leave(self, client: hvac.Client) -> None:
        """See Login. A token that cannot be revoked ends by itself."""
        with suppress(hvac.exceptions.VaultError, requests.RequestException):
            client.auth.token.revoke_self()

    def refused(self) -> str:
        return "the role id or the secret id is wrong, has expired, is used up, or is not for this host's address"


def read_login(read: SettingsReader) -> Login:
    """Return the login that the configuration describes: ``auth``, and the fields of that way."""
    if read.choice("auth", ("token", "approle"), "token") == "token":
        return TokenFile(read.path("token_file"))
    role_id, role_id_file = read.text("role_id", ""), read.optional_path("role_id_file")
    if bool(role_id) == (role_id_file is not None):
        raise read.wrong("role_id", "one of role_id and role_id_file is needed")
    if not role_id.isprintable() or not role_id.isascii():
        raise read.wrong("role_id", "role_id must be printable ASCII")
    return AppRole(role_id, role_id_file, read.path("secret_id_file"), read_path(read, "auth_path", "approle"))


def _read_credential(path: Path, what: str, *, secret: bool) -> str:
    """Return the one word in the file, which is a ``what``, such as a token.

    :raises TdefsError: as :func:`read_file`.
    """
    found = read_file(path, what, secret=secret).strip()
    if not _CREDENTIAL.fullmatch(found):
        detail = "it is empty" if not found else "it holds more than one word, or characters that belong in none"
        raise unfit(path, what, detail)
    return found.decode("ascii")

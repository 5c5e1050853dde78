"""How a Vault client logs in: with a token that another program keeps fresh, or as an AppRole."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hvac
import hvac.exceptions
import requests

from tdefs.keys.private_files import read_file, unfit
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.vault.names import read_path

#: What a token, role id or secret id is made of. It goes into a header, so it must not contain the end of a line.
_CREDENTIAL = re.compile(rb"[!-~]{1,8192}")


class Login(ABC):
    """The identity of the client. Its secret is read from a file each time, since it may be renewed there."""

    #: The path of the auth method, for messages.
    auth_path: str

    @abstractmethod
    def enter(self, client: hvac.Client) -> None:
        """Give ``client`` a token.

        :raises UnavailableError: the file is not fit.
        """

    @abstractmethod
    def leave(self, client: hvac.Client) -> None:
        """Give back what ``enter`` took."""

    @abstractmethod
    def refused(self) -> str:
        """Return the possible reasons if the server refuses the login."""


@dataclass(frozen=True)
class TokenFile(Login):
    """A token in a file, such as one that Vault Agent or ``bao agent`` keeps fresh."""

    path: Path
    auth_path: str = "token"

    def enter(self, client: hvac.Client) -> None:
        """See Login."""
        client.token = _read_credential(self.path, "token", secret=True)

    def leave(self, client: hvac.Client) -> None:
        """See Login. Revoking the token is the task of the program that wrote it."""

    def refused(self) -> str:
        """See Login."""
        return f'the token in "{self.path}" has expired, was revoked or is of another namespace'


@dataclass(frozen=True)
class AppRole(Login):
    """A role id, in the configuration or a file, and a secret id in a file."""

    role_id: str
    role_id_file: Path | None
    secret_id_file: Path
    auth_path: str

    def enter(self, client: hvac.Client) -> None:
        """See Login."""
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
        """See Login."""
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
    """Return the one word in the file, which is a ``what``, such as a token. Raises as read_file."""
    found = read_file(path, what, secret=secret).strip()
    if not _CREDENTIAL.fullmatch(found):
        detail = "it is empty" if not found else "it holds more than one word, or characters that belong in none"
        raise unfit(path, what, detail)
    return found.decode("ascii")

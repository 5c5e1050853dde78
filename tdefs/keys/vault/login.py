"""How a Vault client logs in: with a token that somebody else keeps fresh, or as an AppRole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hvac
import hvac.exceptions
import requests

from tdefs.keys.settings import SettingsReader
from tdefs.keys.vault.files import read_credential
from tdefs.keys.vault.names import read_path


class Login(ABC):
    """Who the client is. Its secret is read from a file each time, as it may have been renewed there."""

    @abstractmethod
    def enter(self, client: hvac.Client) -> None:
        """Give ``client`` a token. Raises TdefsError(KEY_SOURCE_UNAVAILABLE) for a file that is not fit."""

    @abstractmethod
    def leave(self, client: hvac.Client) -> None:
        """Give back what ``enter`` took."""

    @abstractmethod
    def refused(self) -> str:
        """Say what it may be if the server does not let it in."""


@dataclass(frozen=True)
class TokenFile(Login):
    """A token in a file, such as Vault Agent or ``bao agent`` keeps fresh."""

    path: Path

    def enter(self, client: hvac.Client) -> None:
        """See Login."""
        client.token = read_credential(self.path, "token")

    def leave(self, client: hvac.Client) -> None:
        """See Login. The token is somebody else's to revoke."""

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
            role_id = read_credential(self.role_id_file, "role id", secret=False)
        secret_id = read_credential(self.secret_id_file, "secret id")
        client.auth.approle.login(role_id, secret_id, mount_point=self.auth_path)

    def leave(self, client: hvac.Client) -> None:
        """See Login. A token that cannot be revoked ends by itself."""
        with suppress(hvac.exceptions.VaultError, requests.RequestException):
            client.auth.token.revoke_self()

    def refused(self) -> str:
        """See Login."""
        return "the role id or the secret id is wrong, has expired, is used up, or is not for this host's address"


def read_login(read: SettingsReader) -> Login:
    """Return what the configuration says: ``auth`` and the fields of each way."""
    if read.choice("auth", ("token", "approle"), "token") == "token":
        return TokenFile(read.path("token_file"))
    role_id, role_id_file = read.text("role_id", ""), read.optional_path("role_id_file")
    if bool(role_id) == (role_id_file is not None):
        raise read.wrong("role_id", "one of role_id and role_id_file is needed")
    if not role_id.isprintable() or not role_id.isascii():
        raise read.wrong("role_id", "role_id must be printable ASCII")
    return AppRole(role_id, role_id_file, read.path("secret_id_file"), read_path(read, "auth_path", "approle"))

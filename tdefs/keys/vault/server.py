"""A Vault or OpenBao server as the configuration describes it, and asking it.

The configuration alone counts: the environment's VAULT_*, BAO_* and proxy variables, ~/.netrc and ~/.vault-token,
which hvac and requests would take up, have no effect. No redirect is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hvac
import hvac.exceptions
import requests

from tdefs.errors import TdefsError
from tdefs.keys.attempts import PATIENCE_SECONDS, attempt
from tdefs.keys.key_source import Certificate
from tdefs.keys.settings import SettingsReader
from tdefs.keys.vault import refusals
from tdefs.keys.vault.files import check_ca, check_client_certificate
from tdefs.keys.vault.login import AppRole, Login, read_login
from tdefs.keys.vault.names import read_address, read_path

Result = TypeVar("Result")
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class VaultServer:
    """Where it is, whom to trust that it is it, and who asks."""

    address: str
    namespace: str
    ca: Path | None
    client_certificate: tuple[Path, Path] | None
    login: Login
    timeout_seconds: int
    patience_seconds: int

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the key server {self.address}"

    def certificates(self) -> Sequence[Certificate]:
        """Return the certificate files that it needs."""
        found = [] if self.ca is None else [Certificate(self.ca, f"CA of {self.title}")]
        if self.client_certificate is not None:
            found.append(Certificate(self.client_certificate[0], f"client certificate for {self.title}"))
        return found

    def ask(self, call: Callable[[hvac.Client], Result], rights: str) -> Result:
        """Return what ``call`` returns, which is given a client that has logged in; perhaps after several tries.

        ``rights`` says what a policy must allow for it. ``call`` may raise what hvac does, and TdefsError.
        Raises TdefsError as KeySource says, and KEY_SOURCE_UNAVAILABLE for files that are not fit.
        """
        return attempt(lambda: self._once(call, rights), self.title, patience_seconds=self.patience_seconds)

    def _once(self, call: Callable[[hvac.Client], Result], rights: str) -> Result:
        with requests.Session() as session, ExitStack() as at_the_end:
            client = self._client(session)
            self._log_in(client)
            at_the_end.callback(self.login.leave, client)
            try:
                return call(client)
            except hvac.exceptions.VaultError as error:
                refusal = refusals.of_answer(error, self.title, rights, self.login.refused())
            except requests.RequestException as error:
                refusal = refusals.of_transport(error, self.title, self.timeout_seconds)
                # It would be waited for once more.
                at_the_end.pop_all()
        # Raised here, without a context: an exception of requests has the request in it, and so the token.
        raise refusal

    def _log_in(self, client: hvac.Client) -> None:
        try:
            self.login.enter(client)
            return
        except hvac.exceptions.VaultError as error:
            auth_path = self.login.auth_path if isinstance(self.login, AppRole) else "token"
            refusal = refusals.of_login(error, self.title, auth_path, self.login.refused())
        except requests.RequestException as error:
            refusal = refusals.of_transport(error, self.title, self.timeout_seconds)
        except (TypeError, KeyError):
            # hvac takes the token out of whatever came; a redirect is no JSON object
            refusal = not_vault(self.title)
        raise refusal

    def _client(self, session: requests.Session) -> hvac.Client:
        if self.ca is not None:
            check_ca(self.ca)
        if self.client_certificate is not None:
            check_client_certificate(*self.client_certificate)
        # hvac takes what the session says before what it is told itself.
        session.trust_env = False
        session.verify = True if self.ca is None else str(self.ca)
        certificate: tuple[str, str] | None = None
        if self.client_certificate is not None:
            certificate = (str(self.client_certificate[0]), str(self.client_certificate[1]))
        session.cert = certificate
        # Nothing is left out or None: hvac would look for it in the environment.
        return hvac.Client(
            url=self.address,
            token="",
            cert=certificate or (),
            verify=session.verify,
            timeout=self.timeout_seconds,
            proxies={},
            allow_redirects=False,
            session=session,
            namespace=self.namespace,
        )

    def data(self, answer: Any) -> dict[str, Any]:
        """Return the ``data`` of an answer. Raises TdefsError(KEY_SERVER_REFUSED) if it is none of Vault's."""
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise not_vault(self.title)
        return found


def not_vault(title: str) -> TdefsError:
    """Return the error for an answer that Vault does not give."""
    return refusals.refused(
        f"{title} does not answer as Vault does",
        "it answers with a redirect, which is not followed, or with something else than Vault's JSON",
        hint="name the active server itself, or a load balancer before the cluster",
    )


def read_server(read: SettingsReader) -> VaultServer:
    """Return the server that the configuration describes."""
    address = read_address(read)
    ca = read.optional_path("ca")
    if (ca is not None) != address.startswith("https:"):
        raise read.wrong("ca", "ca, the certificates to trust, belongs to an address that begins with https")
    certificate, private_key = read.optional_path("certificate"), read.optional_path("private_key")
    if (certificate is None) != (private_key is None):
        raise read.wrong("certificate", "certificate and private_key need each other")
    both = None if certificate is None or private_key is None else (certificate, private_key)
    return VaultServer(
        address=address,
        namespace=read_path(read, "namespace", ""),
        ca=ca,
        client_certificate=both,
        login=read_login(read),
        timeout_seconds=read.number("timeout_seconds", _TIMEOUT_SECONDS, 1, 300),
        patience_seconds=read.number("patience_seconds", PATIENCE_SECONDS, 0, 3600),
    )

"""What the kinds of key sources that ask Vault or OpenBao share: the server, asking it, the place of the key.

Only the configuration counts. The variables VAULT_*, BAO_* and those for proxies, ~/.netrc and ~/.vault-token,
which hvac and requests would use, have no effect. No redirect is followed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import hvac
import hvac.exceptions
import requests

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.failures import RefusedError
from tdefs.keys.protectors.base import NotMineError, Parameters, WrongSecretError
from tdefs.keys.sources.asking import Patient, Service, TimeLimits
from tdefs.keys.sources.base import Certificate, KeySource
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.tls_files import TlsFiles
from tdefs.keys.sources.vault import refusals
from tdefs.keys.sources.vault.fields import PLACE, Login, read_address, read_login, read_path

Result = TypeVar("Result")
_MOST_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class VaultServer(Service[hvac.Client]):
    """Its address, the files that prove who it and the client are, and how the client logs in."""

    address: str
    namespace: str
    tls: TlsFiles
    login: Login
    timeout_seconds: int

    @property
    def title(self) -> str:
        return f"the key server {self.address}"

    def once(self, call: Callable[[hvac.Client], Result], purpose: str, until: float) -> Result:
        """See Service. ``call`` is given a client that has logged in, and may raise what hvac raises.

        :param purpose: the rights that a policy must give for it.
        :raises UnavailableError: a file is not fit.
        """
        with requests.Session() as session, ExitStack() as at_the_end:
            client = self._client(session)
            self._log_in(client)
            at_the_end.callback(self.login.leave, client)
            try:
                return call(client)
            except hvac.exceptions.VaultError as error:
                refusal = refusals.of_answer(error, self.title, purpose, self.login.refused())
            except requests.RequestException as error:
                refusal = refusals.of_transport(error, self.title, self.timeout_seconds)
                # Logging out would wait for the server once more.
                at_the_end.pop_all()
        # Raised here, without a context: an exception of requests has the request in it, and so the token.
        raise refusal

    def _log_in(self, client: hvac.Client) -> None:
        try:
            self.login.enter(client)
            return
        except hvac.exceptions.VaultError as error:
            refusal = refusals.of_login(error, self.title, self.login.auth_path, self.login.refused())
        except requests.RequestException as error:
            refusal = refusals.of_transport(error, self.title, self.timeout_seconds)
        except (TypeError, KeyError):
            # hvac takes the token out of any answer; a redirect is not a JSON object
            refusal = not_vault(self.title)
        raise refusal

    def _client(self, session: requests.Session) -> hvac.Client:
        self.tls.check()
        # hvac prefers what the session says to its own arguments.
        session.trust_env = False
        session.verify = True if self.tls.ca is None else str(self.tls.ca)
        certificate: tuple[str, str] | None = None
        if self.tls.certificate is not None:
            certificate = (str(self.tls.certificate), str(self.tls.private_key))
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
        """Return the ``data`` of an answer.

        :raises RefusedError: the answer is not one of Vault's.
        """
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise not_vault(self.title)
        return found


def not_vault(title: str) -> RefusedError:
    """Return the error for an answer that Vault does not give."""
    return RefusedError(
        f"{title} does not answer as Vault does",
        "it answers with a redirect, which is not followed, or with something else than Vault's JSON",
        "name the active server itself, or a load balancer before the cluster",
    )


def read_server(read: SettingsReader, timeout_seconds: int) -> VaultServer:
    """Return the server that the configuration describes.

    :raises TdefsError: CONFIG_INVALID.
    """
    address = read_address(read)
    tls = TlsFiles(read.optional_path("ca"), read.optional_path("certificate"), read.optional_path("private_key"))
    if (tls.ca is not None) != address.startswith("https:"):
        raise read.wrong("ca", "ca, the certificates to trust, belongs to an address that begins with https")
    if (tls.certificate is None) != (tls.private_key is None):
        raise read.wrong("certificate", "certificate and private_key need each other")
    return VaultServer(address, read_path(read, "namespace", ""), tls, read_login(read), timeout_seconds)


class VaultSource(KeySource):
    """A key at a place: in a namespace, under a mount, with a name."""

    default_mount: ClassVar[str]
    #: The member of an entry, and the field of the configuration, that has the key's name.
    name_member: ClassVar[str]
    #: Why the key at the right place may be the wrong one.
    wrong_key_detail: ClassVar[str]

    def __init__(self, read: SettingsReader, dialogue: Dialogue) -> None:
        """Read the fields that all kinds have, and :meth:`read_name`.

        :raises TdefsError: CONFIG_INVALID.
        """
        super().__init__()
        limits = TimeLimits.read(read, _MOST_TIMEOUT_SECONDS)
        self._server: VaultServer = read_server(read, limits.timeout_seconds)
        self._patient: Patient[hvac.Client] = Patient(self._server, limits, dialogue.note)
        self._mount = read_path(read, "mount", self.default_mount)
        self._name = self.read_name(read)
        read.finish()

    @classmethod
    def from_settings(cls, read: SettingsReader, dialogue: Dialogue) -> Self:
        return cls(read, dialogue)

    @abstractmethod
    def read_name(self, read: SettingsReader) -> str:
        """Return the key's name, and read the fields that this kind alone has."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The key's name in messages."""

    def certificates(self) -> Sequence[Certificate]:
        return self._server.tls.watched()

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        return WrongSecretError(f"{self.title} does not open this keystore", detail=self.wrong_key_detail)

    def _place(self) -> dict[str, str | int]:
        """Return the parameters that name the place of the key."""
        return {"namespace": self._server.namespace, "mount": self._mount, self.name_member: self._name}

    def _check_place(self, params: Parameters) -> None:
        """Raise NotMineError for the key of another place."""
        if {name: params.text(name, PLACE) for name in self._place()} != self._place():
            raise NotMineError

"""What the kinds of key sources that ask Vault share: the server, the place of the key, and asking."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import hvac

from tdefs.keys.dialogue import Dialogue
from tdefs.keys.protectors.base import NotMineError, WrongSecretError
from tdefs.keys.protectors.obtaining import Parameters
from tdefs.keys.sources.asking import Patient, TimeLimits
from tdefs.keys.sources.base import Certificate, KeySource
from tdefs.keys.sources.settings import SettingsReader
from tdefs.keys.sources.vault.names import PLACE, read_path
from tdefs.keys.sources.vault.server import VaultServer, read_server

_MOST_TIMEOUT_SECONDS = 300


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
        """See KeySource."""
        return cls(read, dialogue)

    @abstractmethod
    def read_name(self, read: SettingsReader) -> str:
        """Return the key's name, and read the fields that this kind alone has."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The key's name in messages."""

    def certificates(self) -> Sequence[Certificate]:
        """See KeySource."""
        return self._server.tls.watched()

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        """See ObtainingProtector."""
        del params
        return WrongSecretError(f"{self.title} does not open this keystore", detail=self.wrong_key_detail)

    def _place(self) -> dict[str, str | int]:
        """Return the parameters that name the place of the key."""
        return {"namespace": self._server.namespace, "mount": self._mount, self.name_member: self._name}

    def _check_place(self, params: Parameters) -> None:
        """Raise NotMineError for the key of another place."""
        if {name: params.text(name, PLACE) for name in self._place()} != self._place():
            raise NotMineError

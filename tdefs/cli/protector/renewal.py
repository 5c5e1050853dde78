"""New protector keys for a new master key: for each protector that can be asked without a person.

A protector key opens the master key, and the next one after a rotation, too: somebody who had the old protector
key could open the new master key. So a rotation gives a new key to each protector whose secret is at hand. It
reports the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tdefs.cli.common.output import print_line
from tdefs.cli.common.secret_options import SecretOptions, protector_of
from tdefs.cli.common.this_host import holders
from tdefs.cli.common.unlocking import KeystoreAccess
from tdefs.config import VolumeConfig
from tdefs.errors import TdefsError
from tdefs.keys.failures import UnreachableError
from tdefs.keys.hierarchy import MasterKey
from tdefs.keys.keystore.entries import Document, ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import new_protector_entry, open_master_key
from tdefs.keys.protectors.base import NotMineError, Protector, WrongSecretError
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.text import printable
from tdefs.volume.description import Volume

_NOT_AT_HAND = "its secret is not at hand"


@dataclass
class Renewal:
    """The secrets that need no person, and, after :meth:`renew`, the result for each protector."""

    document: Document
    candidates: Sequence[Protector]
    #: The old entries of protectors with a new key, each with its new entry and the maker of that.
    renewed: list[tuple[ProtectorEntry, ProtectorEntry, Protector]] = field(default_factory=list)
    #: The others, each with the reason.
    left: list[tuple[ProtectorEntry, str]] = field(default_factory=list)
    _silent: list[Protector] = field(default_factory=list)

    def renew(self, entry: ProtectorEntry, master: MasterKey) -> ProtectorEntry | None:
        """Return the entry with a new protector key that opens *master*, or None if its secret is not at hand."""
        reason = _NOT_AT_HAND
        for candidate in self.candidates:
            if candidate in self._silent:
                continue
            try:
                open_master_key(self.document, entry, candidate)
                protector = candidate.like(entry)
                new = new_protector_entry(self.document.volume_id, protector, entry.id, entry.label, master)
            except (NotMineError, WrongSecretError):
                continue
            except TdefsError as error:
                if isinstance(error, UnreachableError):
                    self._silent.append(candidate)
                reason = error.message
                continue
            self.renewed.append((entry, new, protector))
            return new
        self.left.append((entry, reason))
        return None

    def print(self) -> None:
        """Print the result for each protector, and how the others get a new key."""
        for old, _, _ in self.renewed:
            print_line(f"protector {_described(old)} has a new key, by the same secret")
        for entry, reason in self.left:
            print_line(f"protector {_described(entry)} keeps its old key: {printable(reason)}")
            print_line(f"    to renew it: tdefs protector change {entry.id} (or remove it, and add it again)")


def candidates(access: KeystoreAccess, volume: Volume, document: Document, given: Protector) -> list[Protector]:
    """Return the secrets that need no person: the *given* one, this host, and that of the configuration."""
    settings = access.settings(volume)
    found = [given]
    kinds = {entry.kind for entry in document.protectors}
    if given.kind != ThisHostProtector.kind and ThisHostProtector.kind in kinds:
        found.append(ThisHostProtector(holders(settings)))
    with suppress(TdefsError):
        found += _configured(access, volume, settings)
    for name, source in access.invocation.config.key_sources.items():
        if source.kind in kinds:
            with suppress(TdefsError):
                made = access.invocation.key_source(name)
                if made is not given and not made.needs_person:
                    found.append(made)
    return found


def _configured(access: KeystoreAccess, volume: Volume, settings: VolumeConfig) -> Iterator[Protector]:
    """Yield the secret that the configuration names for the volume, unless a person must be asked for it."""
    if settings.passphrase_file or settings.passphrase_credential or settings.key_command:
        secret = SecretOptions(
            passphrase_file=settings.passphrase_file,
            passphrase_credential=settings.passphrase_credential,
            key_command=settings.key_command,
        )
        keystore = access.keystore or settings.keystore or volume.keystore
        # a key command that needs the terminal is refused here
        yield protector_of(access.invocation, secret, keystore)


def _described(entry: ProtectorEntry) -> str:
    return f"{entry.id} ({entry.kind}{f', {printable(entry.label)}' if entry.label else ''})"

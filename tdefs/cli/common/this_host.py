"""Auto-open for all commands that unlock: which of the keystore's entries this host can open."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tdefs.config import VolumeConfig
from tdefs.errors import NoSecretError, TdefsError
from tdefs.keys.keystore.entries import Document, ProtectorEntry
from tdefs.keys.keystore.file import Keystore
from tdefs.keys.keystore.wrapped_keys import open_master_key
from tdefs.keys.protectors.base import NotMineError
from tdefs.keys.protectors.this_host import HostRefusedError, ThisHostProtector
from tdefs.keys.protectors.this_host_holders import DEFAULT_DIRECTORY, HostKeyHolder, TpmHolder
from tdefs.keys.tpm import Tpm
from tdefs.text import printable

_ENABLE = "'tdefs auto-open enable' on this host, with another secret that opens the keystore"


@dataclass(frozen=True)
class HostEntry:
    """An entry of the kind, what keeps its secret, and whether it was made on this host.

    ``refusal`` says why it does not open, unless it is simply an entry of another host.
    """

    entry: ProtectorEntry
    title: str
    is_mine: bool
    refusal: TdefsError | None = None

    @property
    def opens(self) -> bool:
        """Whether this host opens the keystore by it."""
        return self.is_mine and self.refusal is None


def holders(settings: VolumeConfig, pcrs: str = "") -> tuple[TpmHolder, HostKeyHolder]:
    """Return what may keep a secret on this host: TPM, host key. *pcrs* is for secrets that are made."""
    directory = settings.host_key_directory or DEFAULT_DIRECTORY
    return TpmHolder(Tpm(), pcrs), HostKeyHolder(directory)


def survey(document: Document, protector: ThisHostProtector) -> list[HostEntry]:
    """Try each entry of the kind; this raises nothing."""
    found = []
    for entry in document.protectors:
        if entry.kind != protector.kind:
            continue
        title = protector.title(entry)
        try:
            open_master_key(document, entry, protector)
        except NotMineError:
            found.append(HostEntry(entry, title, is_mine=False))
        except TdefsError as error:
            # one that is damaged, or that a newer tdefs made, need not be of this host
            found.append(HostEntry(entry, title, isinstance(error, HostRefusedError), error))
        else:
            found.append(HostEntry(entry, title, is_mine=True))
    return found


def opening_host(keystore: Keystore, settings: VolumeConfig) -> ThisHostProtector | None:
    """Return this host, if it opens *keystore*; if it should open it and cannot, print why on stderr."""
    protector = ThisHostProtector(holders(settings))
    found = survey(keystore.document, protector)
    if any(one.opens for one in found):
        return protector
    for refusal in _refusals(found):
        print(f"tdefs: warning: auto-open: {refusal.message}", file=sys.stderr)
        for name, text in (("DETAIL", refusal.detail), ("HINT", refusal.hint)):
            if text:
                print(f"{name}:  {text}", file=sys.stderr)
    return None


def demanded_host(keystore: Keystore, settings: VolumeConfig) -> ThisHostProtector:
    """Return this host, which must open *keystore*; if it does not, opening says why, and it is recorded.

    :raises TdefsError: NO_SECRET if auto-open is not enabled on this host.
    """
    protector = ThisHostProtector(holders(settings))
    found = survey(keystore.document, protector)
    if any(one.is_mine for one in found):
        return protector
    raise next(iter(_refusals(found)), not_enabled(found))


def forget_here(protector: ThisHostProtector, entry: ProtectorEntry) -> None:
    """Remove what this host keeps for *entry*, which is not in the keystore any more.

    The keystore is changed already. So if something cannot be removed, it is of no use, and there is a warning.
    """
    try:
        protector.forget(entry)
    except OSError as error:
        place = printable(str(error.filename))
        print(f'tdefs: warning: could not remove "{place}": {error.strerror}', file=sys.stderr)


def not_enabled(found: Sequence[HostEntry]) -> TdefsError:
    """Return the error for a host that has no entry of its own among those *found*."""
    others = ", ".join(f"{one.entry.id} ({one.entry.label})" for one in found)
    return NoSecretError(
        "auto-open is not enabled on this host",
        detail=f"it is on other hosts: {others}" if others else "nor is it on any other host",
        hint=_ENABLE,
    )


def _refusals(found: Sequence[HostEntry]) -> list[TdefsError]:
    return [one.refusal for one in found if one.refusal is not None]

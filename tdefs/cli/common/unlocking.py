"""Opening the keystore of a volume: its place, the secret that unlocks it, and the record in its history."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_users import warn_unless_registered
from tdefs.cli.common.secret_options import SecretOptions, add_secret, protector_of
from tdefs.cli.common.this_host import demanded_host, opening_host
from tdefs.config import VolumeConfig
from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.file import Keystore, Unlocked, load_keystore
from tdefs.keys.keystore.history import append
from tdefs.keys.protectors.base import Protector
from tdefs.private import UntrustedError, reason_of
from tdefs.volume.believed import Opened, opened
from tdefs.volume.description import DEFAULT_KEYSTORE, Volume, remembers_truly


@dataclass(frozen=True, slots=True)
class KeystoreAccess:
    """How the command line says to reach and unlock a keystore; the configuration says what it leaves out."""

    invocation: Invocation
    keystore: Path | None = None
    secret: SecretOptions = SecretOptions()  # noqa: RUF009 - it is frozen

    def settings(self, volume: Volume) -> VolumeConfig:
        """Return what the configuration says of *volume*."""
        return self.invocation.config.for_backing(volume.backing)

    def of_another_volume(self) -> KeystoreAccess:
        """Return the access to the keystore of another volume, by the same secret."""
        return replace(self, keystore=None)

    def configured(self, volume: Volume) -> KeystoreAccess | None:
        """Return the access to *volume* that the configuration alone describes; ``None`` if it names no secret."""
        secret = SecretOptions().or_configured(self.settings(volume))
        return KeystoreAccess(self.invocation, secret=secret) if secret.is_given else None


def add_keystore_access(parser: argparse.ArgumentParser, *, recovery_prompt: bool = True) -> None:
    """Add the options that say where the keystore is and what unlocks it.

    :param recovery_prompt: whether there is ``--recovery-code``; ``protector add`` means something else by it.
    """
    add_secret(parser, recovery=True, recovery_prompt=recovery_prompt)
    add_keystore(parser)


def add_keystore(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the keystore is."""
    parser.add_argument(
        "--keystore", metavar="FILE", type=Path, help="default: the keystore that the volume remembers"
    )
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the configuration."""
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/tdefs/tdefs.yaml, if it exists")


def keystore_path(access: KeystoreAccess, volume: Volume) -> Path:
    """Return the place of the keystore of *volume*.

    :raises TdefsError: KEYSTORE_MISSING for a volume that was moved together with its keystore; errors of the
        configuration.
    """
    named = access.keystore or access.settings(volume).keystore
    own = volume.private / DEFAULT_KEYSTORE
    if named is None and not _is_gone(own) and _is_gone(volume.keystore):
        # not used silently: it may be older than the one that cannot be seen at the moment
        raise TdefsError(
            Exit.KEYSTORE_MISSING,
            f'there is no keystore "{volume.keystore}", which the volume remembers',
            detail=f'there is one in its own directory, "{own}"',
            hint="if the volume was moved or restored here together with it:"
            f' "tdefs volume moved {volume.backing} --keystore {own}"; else name the right one with --keystore',
        )
    return named or volume.keystore


def _is_gone(path: Path) -> bool:
    """Return whether there is certainly nothing at *path*."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def read_keystore(access: KeystoreAccess, volume: Volume) -> Keystore:
    """Return the keystore of *volume*, locked; warn if it does not know the volume at this place.

    :raises TdefsError: errors of the keystore or the configuration.
    """
    keystore = load_keystore(keystore_path(access, volume))
    keystore.check_volume(volume.volume_id)
    warn_unless_registered(access.invocation, keystore.document, keystore.path, volume)
    return keystore


def unlocking_secret(access: KeystoreAccess, volume: Volume, keystore: Keystore) -> Protector:
    """Return the secret for the *keystore* of *volume*: from the command line, else from the configuration.

    If neither names one, this host itself opens the keystore, if auto-open is enabled on it.

    :raises TdefsError: errors of the keystore or the configuration; why this host does not open it, if the command
        line says that it must.
    """
    settings = access.settings(volume)
    if access.secret.auto_open:
        return demanded_host(keystore, settings)
    secret = access.secret.or_configured(settings)
    if not secret.is_given:
        host = opening_host(keystore, settings)
        if host is not None:
            return host
    return protector_of(access.invocation, secret, keystore_path(access, volume))


def unlock(access: KeystoreAccess, volume: Volume) -> Opened:
    """Return the keys of *volume*, and what they prove about it.

    :raises TdefsError: errors of the keystore, its place, its secret or the configuration.
    """
    keystore = read_keystore(access, volume)
    unlocked = open_recorded(keystore, unlocking_secret(access, volume, keystore), access.invocation.command)
    check_place(access, volume, unlocked)
    return opened(volume, unlocked, keystore.path)


def check_place(access: KeystoreAccess, volume: Volume, unlocked: Unlocked) -> None:
    """Check that the *unlocked* keystore is the right one for *volume*, and that nobody else has put it there.

    If neither the command line nor the configuration names the keystore, the volume does. A user who can write to
    the volume's directory could name another one: an older copy, which allows more, or which more secrets open.

    :raises TdefsError: KEYSTORE_FOREIGN; errors of the configuration.
    """
    if access.keystore is not None or access.settings(volume).keystore is not None:
        return
    check_remembered(volume, unlocked)


def check_remembered(volume: Volume, unlocked: Unlocked) -> None:
    """Check that the place of the *unlocked* keystore was written into *volume* by a tdefs that had its keys.

    :raises TdefsError: KEYSTORE_FOREIGN.
    """
    if not remembers_truly(volume, history_key_of(unlocked.ring)):
        raise TdefsError(
            Exit.KEYSTORE_FOREIGN,
            f'nobody with the keys of "{volume.keystore}" wrote into "{volume.backing}" that it is its keystore',
            detail="somebody who can write to the backing directory may have put it there, such as an older copy",
            hint="look whether it is the right one; then name it with --keystore, or in the configuration, or have"
            f' the volume remember it: "tdefs volume moved {volume.backing} --keystore {volume.keystore}"',
        )


def open_recorded(
    keystore: Keystore, protector: Protector, command: str, event: str = "unlock", **what: str
) -> Unlocked:
    """Unlock *keystore*, and record that in its history, or that it failed.

    The record has the name *event*, and the details *what* besides the command and the protector. A history that
    cannot be written is a warning: the database must be able to start.

    :raises TdefsError: errors of the keystore or its secret.
    """
    try:
        unlocked = keystore.open(protector)
    except TdefsError as error:
        record(keystore.path, "unlock failed", {"command": command, "error": error.exit_code.name})
        raise
    record(keystore.path, event, {"command": command, "protector": unlocked.protector_id, **what}, unlocked)
    return unlocked


def record(keystore: Path, event: str, what: Mapping[str, str | int], unlocked: Unlocked | None = None) -> None:
    """Record an event in the history of *keystore*, with a MAC if it is *unlocked*; warn if that fails."""
    key = None if unlocked is None else unlocked.ring.history_key
    try:
        append(keystore, event, what, key)
    except (OSError, UntrustedError) as error:
        print(f"tdefs: warning: the keystore's history cannot be written: {reason_of(error)}", file=sys.stderr)

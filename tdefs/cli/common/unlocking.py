"""The arguments of commands that need the keystore, and unlocking it with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from tdefs.cli.common.keystore_users import warn_unless_registered
from tdefs.cli.common.secret_arguments import add_unlock_arguments, is_secret_given, secret_from_arguments
from tdefs.cli.common.terminal import TerminalDialogue
from tdefs.cli.common.this_host import demanded_host, opening_host
from tdefs.config import VolumeConfig, load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.file import Keystore, Unlocked, load_keystore
from tdefs.keys.keystore.history import append
from tdefs.keys.protectors.base import Protector
from tdefs.keys.sources.base import KeySource
from tdefs.keys.sources.kinds import make_key_source
from tdefs.private import UntrustedError, reason_of
from tdefs.volume.believed import Opened, opened
from tdefs.volume.description import DEFAULT_KEYSTORE, Volume, remembers_truly


def add_keystore_arguments(parser: argparse.ArgumentParser, *, recovery_prompt: bool = True) -> None:
    """Add the options that say where the keystore is and what unlocks it.

    Without ``recovery_prompt`` there is no ``--recovery-code``: ``protector add`` means something else by it.
    """
    add_unlock_arguments(parser, recovery=True, recovery_prompt=recovery_prompt)
    add_keystore_place(parser)


def add_keystore_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the keystore is."""
    parser.add_argument("--keystore", metavar="FILE", type=Path, help="instead of the one the volume remembers")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the configuration."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="default: /etc/tdefs/tdefs.yaml if it is there"
    )


def keystore_path(args: argparse.Namespace, volume: Volume) -> Path:
    """Return the place of the keystore of *volume*.

    :raises TdefsError: KEYSTORE_MISSING for a volume that was moved together with its keystore; what is wrong with
        the configuration.
    """
    settings = load_config(args.config).for_backing(volume.backing)
    named: Path | None = args.keystore or settings.keystore
    own = volume.private / DEFAULT_KEYSTORE
    if named is None and not _is_gone(own) and _is_gone(volume.keystore):
        # not taken without a word: it may be of an older time than the one that is only out of sight
        raise TdefsError(
            Exit.KEYSTORE_MISSING,
            f'there is no keystore "{volume.keystore}", which the volume remembers',
            detail=f'there is one in its own directory, "{own}"',
            hint="if the volume was moved or restored here together with it:"
            f' "tdefs volume moved {volume.backing} --keystore {own}"; else name the right one with --keystore',
        )
    return named or volume.keystore


def _is_gone(path: Path) -> bool:
    """Tell whether there is nothing at *path*; what this user may not look at may be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def read_keystore(args: argparse.Namespace, volume: Volume) -> Keystore:
    """Return the keystore of *volume*, locked; warn if it does not know the volume at this place.

    :raises TdefsError: what is wrong with the keystore or the configuration.
    """
    keystore = load_keystore(keystore_path(args, volume))
    keystore.check_volume(volume.volume_id)
    warn_unless_registered(args, keystore.document, keystore.path, volume)
    return keystore


def unlocking_secret(args: argparse.Namespace, volume: Volume, keystore: Keystore) -> Protector:
    """Return the secret for the *keystore* of *volume*, from the command line or else from the configuration.

    If neither does, this host itself opens the keystore where auto-open is enabled on it.

    :raises TdefsError: what is wrong with the keystore or the configuration; why this host does not open it, if
        the command line says that it must.
    """
    settings = load_config(args.config).for_backing(volume.backing)
    if getattr(args, "auto_open", False):
        return demanded_host(keystore, settings)
    use_configured_secret(args, settings)
    if not is_secret_given(args):
        host = opening_host(keystore, settings)
        if host is not None:
            return host
    return secret_from_arguments(args, keystore_path(args, volume), source_finder(args), confirm=False)


def use_configured_secret(args: argparse.Namespace, settings: VolumeConfig) -> None:
    """Where the command line does not say where the secret comes from, let the configuration say it."""
    if not is_secret_given(args):
        args.passphrase_file = settings.passphrase_file
        args.passphrase_credential = settings.passphrase_credential
        args.key_command = settings.key_command
        args.key_source = settings.key_source


def source_finder(args: argparse.Namespace) -> Callable[[str], KeySource]:
    """Return what finds a key source in the configuration by its name.

    A command has each of them once, which then asks for its PIN once, and gives each warning once.
    """
    find: Callable[[str], KeySource] | None = getattr(args, "find_key_source", None)
    if find is None:
        find = cache(lambda name: make_key_source(load_config(args.config).key_source(name), TerminalDialogue()))
        args.find_key_source = find
    return find


def unlock(args: argparse.Namespace, volume: Volume) -> Opened:
    """Return the keys of *volume*, and what they make certain of it.

    :raises TdefsError: what is wrong with the keystore, its place, its secret or the configuration.
    """
    # the module of a command has its name: tdefs.cli.key.show is recorded as key_show
    module: str = args.run.__module__.removeprefix("tdefs.cli.").removesuffix(".command")
    command = module.replace(".", "_")
    keystore = read_keystore(args, volume)
    unlocked = open_recorded(keystore, unlocking_secret(args, volume, keystore), command)
    check_place(args, volume, unlocked)
    return opened(volume, unlocked, keystore.path)


def check_place(args: argparse.Namespace, volume: Volume, unlocked: Unlocked) -> None:
    """Check that the *unlocked* keystore is the one that *volume* is meant to have, and none that was put there.

    Where neither the command line nor the configuration names it, the volume does, and whoever can write to its
    directory could name another: an older copy, in which more is allowed, or more opens.

    :raises TdefsError: KEYSTORE_FOREIGN; what is wrong with the configuration.
    """
    if args.keystore is not None or load_config(args.config).for_backing(volume.backing).keystore is not None:
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
    """Unlock *keystore*, and write that down in its history, or that it failed.

    *event* is what it is called there, and *what* is said of it beside the command and the protector.

    A history that cannot be written is a warning: the database must be able to start.

    :raises TdefsError: what is wrong with the keystore or its secret.
    """
    try:
        unlocked = keystore.open(protector)
    except TdefsError as error:
        record(keystore.path, "unlock failed", {"command": command, "error": error.exit_code.name})
        raise
    record(keystore.path, event, {"command": command, "protector": unlocked.protector_id, **what}, unlocked)
    return unlocked


def record(keystore: Path, event: str, what: Mapping[str, str | int], unlocked: Unlocked | None = None) -> None:
    """Write an event down in the history of *keystore*, with a MAC if it is *unlocked*; warn if that fails."""
    key = None if unlocked is None else unlocked.ring.history_key
    try:
        append(keystore, event, what, key)
    except (OSError, UntrustedError) as error:
        print(f"tdefs: warning: the keystore's history cannot be written: {reason_of(error)}", file=sys.stderr)

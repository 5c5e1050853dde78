"""The arguments of commands that read a volume without mounting it, and unlocking the volume with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from tdefs.config import load_config
from tdefs.keys.hierarchy import KeyRing
from tdefs.keys.keystore import load_keystore
from tdefs.keys.secrets import add_unlock_arguments, secret_from_arguments
from tdefs.volume import Volume


def add_keystore_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the keystore is and what unlocks it."""
    add_unlock_arguments(parser)
    parser.add_argument("--keystore", metavar="FILE", type=Path, help="instead of the one the volume remembers")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="default: /etc/tdefs/tdefs.yaml if it is there"
    )


def unlock(args: argparse.Namespace, volume: Volume) -> KeyRing:
    """Return the keys of *volume*; what the command line does not say, the configuration does, as for a mount.

    :raises TdefsError: what is wrong with the keystore, its secret or the configuration.
    """
    settings = load_config(args.config).for_backing(volume.backing)
    if args.passphrase_file is None and args.passphrase_fd is None and args.key_command is None:
        args.passphrase_file = settings.passphrase_file
        args.key_command = settings.key_command
    keystore = load_keystore(args.keystore or settings.keystore or volume.keystore)
    keystore.check_volume(volume.volume_id)
    return keystore.unlock(secret_from_arguments(args, confirm=False))

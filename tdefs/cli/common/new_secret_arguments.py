"""The options for a new secret of a protector, beside those that unlock."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tdefs.cli.common.secret_arguments import (
    add_scrypt_cost,
    chosen_cost,
    command_protector,
    descriptor_number,
)
from tdefs.cli.common.terminal import ask_passphrase, warn
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.keys.protectors.recovery import RecoveryCodeProtector, new_code, show_code
from tdefs.keys.secret_files import (
    read_passphrase_credential,
    read_passphrase_descriptor,
    read_passphrase_file,
)

_OTHER_OPTIONS = "use --new-passphrase-file, --new-passphrase-fd, --new-key-command or --new-key-source"


def add_new_secret_arguments(parser: argparse.ArgumentParser, *recovery_options: str) -> None:
    """Add the options that say where the new secret comes from; *recovery_options* make a recovery code."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--new-passphrase-file", metavar="FILE", type=Path, help="read the new passphrase from FILE"
    )
    group.add_argument(
        "--new-passphrase-fd",
        metavar="N",
        type=descriptor_number,
        help="read the new passphrase from the open file descriptor N",
    )
    group.add_argument(
        "--new-passphrase-credential",
        metavar="NAME",
        help="read the new passphrase from the credential NAME that systemd hands to the unit",
    )
    group.add_argument(
        "--new-key-command", metavar="COMMAND", help="COMMAND prints the new key as 64 hexadecimal characters"
    )
    group.add_argument(
        "--new-key-source", metavar="NAME", help="the key source that the configuration describes as NAME"
    )
    group.add_argument(
        *recovery_options,
        dest="new_recovery_code",
        action="store_true",
        help="make a recovery code and print it, once",
    )
    add_scrypt_cost(parser)


def new_secret_from_arguments(
    args: argparse.Namespace, keystore: Path, find_source: Callable[[str], Protector]
) -> tuple[Protector, str | None]:
    """Return the protector for the new secret, and the recovery code to print if one was made.

    No option means that the terminal asks for a new passphrase, twice. Raises nothing yet: see
    :func:`tdefs.cli.common.secret_arguments.secret_from_arguments`.
    """
    if args.new_recovery_code:
        code = show_code(new_code())
        return RecoveryCodeProtector(code.encode), code
    if args.new_key_command is not None:
        return command_protector(args.new_key_command, keystore, args, confirm=True), None
    if args.new_key_source is not None:
        return find_source(args.new_key_source), None
    read: Callable[[], bytes]
    if args.new_passphrase_file is not None:
        read = partial(read_passphrase_file, args.new_passphrase_file, warn)
    elif args.new_passphrase_fd is not None:
        read = partial(read_passphrase_descriptor, args.new_passphrase_fd)
    elif args.new_passphrase_credential is not None:
        read = partial(read_passphrase_credential, args.new_passphrase_credential)
    else:
        read = partial(ask_passphrase, confirm=True, name="New passphrase", instead=_OTHER_OPTIONS)
    return PassphraseProtector(read, cost=chosen_cost(args)), None

"""The options that name the secret that unlocks a keystore, and the protector that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tdefs.cli.common.terminal import ask_passphrase, lent_terminal, warn
from tdefs.errors import Exit, TdefsError
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import (
    DEFAULT_COST,
    LEAST_COST,
    MOST_COST,
    PassphraseProtector,
    ScryptCost,
)
from tdefs.keys.protectors.recovery import RecoveryCodeProtector
from tdefs.keys.secret_files import (
    read_passphrase_credential,
    read_passphrase_descriptor,
    read_passphrase_file,
)


def add_unlock_arguments(
    parser: argparse.ArgumentParser, *, recovery: bool = False, recovery_prompt: bool = True
) -> None:
    """Add the options that say where the secret comes from; more than one is a usage error.

    No option takes the secret itself: every user of the host can see arguments. *recovery* adds the options for
    what unlocks but is never the first secret of a keystore: a recovery code, and this host.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="read the passphrase from FILE (less its last newline)",
    )
    group.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=descriptor_number,
        help="read the passphrase from the open file descriptor N to its end (less its last newline)",
    )
    group.add_argument(
        "--passphrase-credential",
        metavar="NAME",
        help="read the passphrase from the credential NAME that systemd hands to the unit",
    )
    group.add_argument(
        "--key-command",
        metavar="COMMAND",
        help="run COMMAND by /bin/sh; it prints the key as 64 hexadecimal characters; it may have %%d (a "
        "directory for its files), %%p (a prompt), %%R (the terminal's descriptor) and %%%% (a percent sign)",
    )
    group.add_argument(
        "--key-source", metavar="NAME", help="ask the key source that the configuration describes as NAME"
    )
    parser.add_argument(
        "-R", "--authprompt", action="store_true", help="lend the terminal to the key command, for its %%R"
    )
    if recovery:
        group.add_argument(
            "--recovery-code-file", metavar="FILE", type=Path, help="read a recovery code from FILE"
        )
        group.add_argument(
            "--auto-open", action="store_true", help="open it as this host, or fail: see 'tdefs auto-open'"
        )
        group.add_argument(
            "--ask-passphrase",
            action="store_true",
            help="ask on the terminal, even if this host could open it or the configuration names a secret",
        )
    if recovery and recovery_prompt:
        group.add_argument("--recovery-code", action="store_true", help="ask for a recovery code on the terminal")


def is_secret_given(args: argparse.Namespace) -> bool:
    """Return whether the command line says where the secret comes from."""
    return (
        args.passphrase_file is not None
        or args.passphrase_fd is not None
        or args.passphrase_credential is not None
        or args.key_command is not None
        or args.key_source is not None
        or getattr(args, "recovery_code_file", None) is not None
        or getattr(args, "recovery_code", False)
        or getattr(args, "auto_open", False)
        or getattr(args, "ask_passphrase", False)
    )


def secret_from_arguments(
    args: argparse.Namespace, keystore: Path, find_source: Callable[[str], Protector], *, confirm: bool
) -> Protector:
    """Return the protector for the options of :func:`add_unlock_arguments`; no option means the terminal.

    Nothing is read, asked or run yet. The protector does so when it first needs its secret, and raises TdefsError
    then: NO_SECRET if there is none, KEY_COMMAND_FAILED. So a process that goes to the background must unlock
    before.

    :param keystore: the file that the secret is for; a key command keeps its own files beside it.
    :param find_source: returns the key source of a name.
    :param confirm: for a new secret, the terminal asks twice, and a key command is run twice.
    :raises TdefsError: USAGE for --authprompt without a key command, old or new; KEY_COMMAND_FAILED for its
        placeholders.
    """
    if args.key_command is not None:
        return command_protector(args.key_command, keystore, args, confirm=confirm)
    if args.authprompt and getattr(args, "new_key_command", None) is None:
        raise TdefsError(Exit.USAGE, "--authprompt is given, but no key command that could use it")
    if args.key_source is not None:
        return find_source(args.key_source)
    if getattr(args, "recovery_code_file", None) is not None:
        return RecoveryCodeProtector(partial(read_passphrase_file, args.recovery_code_file, warn, "recovery code"))
    if getattr(args, "recovery_code", False):
        return RecoveryCodeProtector(
            partial(ask_passphrase, confirm=False, name="Recovery code", instead="use --recovery-code-file")
        )
    read: Callable[[], bytes]
    if args.passphrase_file is not None:
        read = partial(read_passphrase_file, args.passphrase_file, warn)
    elif args.passphrase_fd is not None:
        read = partial(read_passphrase_descriptor, args.passphrase_fd)
    elif args.passphrase_credential is not None:
        read = partial(read_passphrase_credential, args.passphrase_credential)
    else:
        read = partial(ask_passphrase, confirm=confirm)
    return PassphraseProtector(read, cost=chosen_cost(args))


def command_protector(
    command: str, keystore: Path, args: argparse.Namespace, *, confirm: bool
) -> CommandProtector:
    """Return the protector of a key command, which may use the terminal with --authprompt."""
    lend_terminal = lent_terminal if args.authprompt else None
    return CommandProtector(command, keystore, lend_terminal=lend_terminal, confirm=confirm)


def descriptor_number(text: str) -> int:
    """Return the number of a descriptor, for argparse."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError("a file descriptor is a number, such as 3")
    return int(text)


def add_scrypt_cost(parser: argparse.ArgumentParser) -> None:
    """Add the option for the cost of a new passphrase."""
    parser.add_argument(
        "--scrypt-cost",
        metavar="N",
        type=_cost,
        default=DEFAULT_COST,
        help=f"of a new passphrase: scrypt takes 2^N KiB of memory, and time to match; {LEAST_COST} to"
        f" {MOST_COST}, default {DEFAULT_COST} (1 GiB)",
    )


def chosen_cost(args: argparse.Namespace) -> ScryptCost:
    """Return the cost of a new passphrase; warn on stderr, once, if it is below the default."""
    cost: int = getattr(args, "scrypt_cost", DEFAULT_COST)
    if cost < DEFAULT_COST and not getattr(args, "has_warned_of_cost", False):
        args.has_warned_of_cost = True
        warn(
            f"a passphrase of cost {cost} is {1 << (DEFAULT_COST - cost)} times easier to guess than one of the"
            f" default, {DEFAULT_COST}, for somebody who has a copy of the keystore",
            hint="leave out --scrypt-cost, unless the host cannot spare the memory; make the passphrase longer",
        )
    return ScryptCost(n=1 << cost)


def _cost(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and LEAST_COST <= int(text[:9]) <= MOST_COST):
        raise argparse.ArgumentTypeError(f"the cost is a number from {LEAST_COST} to {MOST_COST}, such as 18")
    return int(text)

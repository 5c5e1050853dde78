"""The options for the secret that unlocks a keystore, and for a new secret of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.terminal import ask_passphrase, lent_terminal, warn
from tdefs.config import VolumeConfig
from tdefs.errors import Exit, TdefsError
from tdefs.keys.private_files import (
    read_passphrase_credential,
    read_passphrase_descriptor,
    read_passphrase_file,
)
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import DEFAULT_COST, LEAST_COST, MOST_COST, PassphraseProtector, ScryptCost
from tdefs.keys.protectors.recovery import RecoveryCodeProtector, new_code, show_code

_OTHER_NEW_OPTIONS = "use --new-passphrase-file, --new-passphrase-fd, --new-key-command or --new-key-source"


@dataclass(frozen=True, slots=True)
class SecretOptions:
    """Where the secret comes from that unlocks a keystore. At most one source is given; none is the terminal."""

    passphrase_file: Path | None = None
    passphrase_fd: int | None = None
    passphrase_credential: str | None = None
    key_command: str | None = None
    key_source: str | None = None
    recovery_code_file: Path | None = None
    recovery_code: bool = False
    auto_open: bool = False
    ask_passphrase: bool = False
    authprompt: bool = False
    """Whether a key command may use the terminal."""
    new_key_command: str | None = None
    """The key command of a new secret; ``authprompt`` may apply to it, too."""

    @property
    def is_given(self) -> bool:
        """Whether the command line says where the secret comes from."""
        return (
            any(
                one is not None
                for one in (
                    *(self.passphrase_file, self.passphrase_fd, self.passphrase_credential),
                    *(self.key_command, self.key_source, self.recovery_code_file),
                )
            )
            or self.recovery_code
            or self.auto_open
            or self.ask_passphrase
        )

    def or_configured(self, settings: VolumeConfig) -> SecretOptions:
        """Return these options; if the command line names no source, those of the configuration."""
        if self.is_given:
            return self
        return replace(
            self,
            passphrase_file=settings.passphrase_file,
            passphrase_credential=settings.passphrase_credential,
            key_command=settings.key_command,
            key_source=settings.key_source,
        )


@dataclass(frozen=True, slots=True)
class CostOption:
    """How expensive it is to try one passphrase."""

    invocation: Invocation
    scrypt_cost: int = DEFAULT_COST

    def chosen(self) -> ScryptCost:
        """Return the cost of a new passphrase; warn on stderr, once, if it is below the default."""
        cost = self.scrypt_cost
        if cost < DEFAULT_COST and not self.invocation.cost_reported:
            self.invocation.cost_reported = True
            warn(
                f"a passphrase of cost {cost} is {1 << (DEFAULT_COST - cost)} times easier to guess than one of"
                f" the default, {DEFAULT_COST}, for somebody who has a copy of the keystore",
                hint="leave out --scrypt-cost, unless the host cannot spare the memory; make the passphrase"
                " longer",
            )
        return ScryptCost(n=1 << cost)


@dataclass(frozen=True, slots=True)
class NewSecretOptions:
    """Where the new secret of a protector comes from. At most one source is given; none is the terminal."""

    invocation: Invocation
    cost: CostOption
    new_passphrase_file: Path | None
    new_passphrase_fd: int | None
    new_passphrase_credential: str | None
    new_key_command: str | None
    new_key_source: str | None
    new_recovery_code: bool
    authprompt: bool

    def protector(self, keystore: Path) -> tuple[Protector, str | None]:
        """Return the protector for the new secret, and the recovery code to print, if one was made.

        No option means that the terminal asks for a new passphrase, twice. Nothing is asked or run yet, as in
        :func:`protector_of`.
        """
        if self.new_recovery_code:
            code = show_code(new_code())
            return RecoveryCodeProtector(code.encode), code
        if self.new_key_command is not None:
            return _command(self.new_key_command, keystore, authprompt=self.authprompt, confirm=True), None
        if self.new_key_source is not None:
            return self.invocation.key_source(self.new_key_source), None
        read: Callable[[], bytes]
        if self.new_passphrase_file is not None:
            read = partial(read_passphrase_file, self.new_passphrase_file, warn)
        elif self.new_passphrase_fd is not None:
            read = partial(read_passphrase_descriptor, self.new_passphrase_fd)
        elif self.new_passphrase_credential is not None:
            read = partial(read_passphrase_credential, self.new_passphrase_credential)
        else:
            read = partial(ask_passphrase, confirm=True, name="New passphrase", instead=_OTHER_NEW_OPTIONS)
        return PassphraseProtector(read, cost=self.cost.chosen()), None


def protector_of(
    invocation: Invocation,
    secret: SecretOptions,
    keystore: Path,
    *,
    confirm: bool = False,
    cost: CostOption | None = None,
) -> Protector:
    """Return the protector that *secret* describes; without a source that is the passphrase from the terminal.

    Nothing is read, asked or run yet. The protector does so when it first needs its secret, and raises TdefsError
    then: NO_SECRET, KEY_COMMAND_FAILED. So a process that goes to the background must unlock before.

    :param keystore: the file that it is for; a key command keeps its own files beside it.
    :param confirm: whether the terminal asks twice, or a key command is run twice, as for a new secret.
    :raises TdefsError: USAGE for --authprompt without a key command, old or new; KEY_COMMAND_FAILED for the
        placeholders of a key command.
    """
    read: Callable[[], bytes]
    if secret.key_command is not None:
        return _command(secret.key_command, keystore, authprompt=secret.authprompt, confirm=confirm)
    if secret.authprompt and secret.new_key_command is None:
        raise TdefsError(Exit.USAGE, "--authprompt is given, but no key command that could use it")
    if secret.key_source is not None:
        return invocation.key_source(secret.key_source)
    if secret.recovery_code_file is not None:
        return RecoveryCodeProtector(
            partial(read_passphrase_file, secret.recovery_code_file, warn, "recovery code")
        )
    if secret.recovery_code:
        return RecoveryCodeProtector(
            partial(ask_passphrase, confirm=False, name="Recovery code", instead="use --recovery-code-file")
        )
    if secret.passphrase_file is not None:
        read = partial(read_passphrase_file, secret.passphrase_file, warn)
    elif secret.passphrase_fd is not None:
        read = partial(read_passphrase_descriptor, secret.passphrase_fd)
    elif secret.passphrase_credential is not None:
        read = partial(read_passphrase_credential, secret.passphrase_credential)
    else:
        read = partial(ask_passphrase, confirm=confirm)
    return PassphraseProtector(read, cost=(cost or CostOption(invocation)).chosen())


def _command(command: str, keystore: Path, *, authprompt: bool, confirm: bool) -> CommandProtector:
    lend_terminal = lent_terminal if authprompt else None
    return CommandProtector(command, keystore, lend_terminal=lend_terminal, confirm=confirm)


def add_secret(parser: argparse.ArgumentParser, *, recovery: bool = False, recovery_prompt: bool = True) -> None:
    """Add the options that say where the secret comes from; more than one is a usage error.

    None of them takes the secret itself: every user of the host can see arguments.

    :param recovery: whether to add those for secrets that are never the first one of a keystore: a recovery code,
        and this host.
    :param recovery_prompt: whether to add ``--recovery-code``, which means something else for ``protector add``.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="read the passphrase from FILE (without its last newline)",
    )
    group.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=descriptor_number,
        help="read the passphrase from the open file descriptor N to its end (without its last newline)",
    )
    group.add_argument(
        "--passphrase-credential",
        metavar="NAME",
        help="read the passphrase from the credential NAME that systemd gives to the unit",
    )
    group.add_argument(
        "--key-command",
        metavar="COMMAND",
        help="run COMMAND with /bin/sh; it prints the key as 64 hexadecimal digits. %%d stands for a directory "
        "for its files, %%p for a prompt, %%R for the terminal's descriptor, %%%% for a percent sign",
    )
    group.add_argument("--key-source", metavar="NAME", help="ask the key source NAME of the configuration")
    parser.add_argument(
        "-R", "--authprompt", action="store_true", help="let the key command use the terminal, as its %%R"
    )
    if recovery:
        group.add_argument(
            "--recovery-code-file", metavar="FILE", type=Path, help="read a recovery code from FILE"
        )
        group.add_argument(
            "--auto-open", action="store_true", help="unlock as this host, or fail: see 'tdefs auto-open'"
        )
        group.add_argument(
            "--ask-passphrase",
            action="store_true",
            help="ask on the terminal, even if this host can unlock or the configuration names a secret",
        )
    if recovery and recovery_prompt:
        group.add_argument("--recovery-code", action="store_true", help="ask for a recovery code on the terminal")


def add_new_secret(parser: argparse.ArgumentParser, *recovery_options: str) -> None:
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
        help="read the new passphrase from the credential NAME that systemd gives to the unit",
    )
    group.add_argument(
        "--new-key-command", metavar="COMMAND", help="COMMAND prints the new key as 64 hexadecimal digits"
    )
    group.add_argument("--new-key-source", metavar="NAME", help="use the key source NAME of the configuration")
    group.add_argument(
        *recovery_options,
        dest="new_recovery_code",
        action="store_true",
        help="make a recovery code and print it, once",
    )
    add_cost(parser)


def add_cost(parser: argparse.ArgumentParser) -> None:
    """Add the option for the cost of a new passphrase, to a command that may make one."""
    parser.add_argument(
        "--scrypt-cost",
        metavar="N",
        type=_cost,
        default=DEFAULT_COST,
        help=f"the cost of a new passphrase: scrypt takes 2^N KiB of memory, and time to match; {LEAST_COST} to"
        f" {MOST_COST}, default: {DEFAULT_COST} (1 GiB)",
    )


def _cost(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and LEAST_COST <= int(text[:9]) <= MOST_COST):
        raise argparse.ArgumentTypeError(f"the cost is a number from {LEAST_COST} to {MOST_COST}, such as 18")
    return int(text)


def descriptor_number(text: str) -> int:
    """Return the number of a descriptor, for argparse."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError("a file descriptor is a number, such as 3")
    return int(text)

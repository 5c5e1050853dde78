"""Where the secret comes from that unlocks a keystore: options of the command line, or the terminal."""

from __future__ import annotations

import argparse
import getpass
import os
import shlex
import stat
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.credential import credential_path
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command import CommandProtector
from tdefs.keys.protectors.passphrase import PassphraseProtector
from tdefs.keys.protectors.recovery import RecoveryCodeProtector
from tdefs.keys.scrypt_option import chosen_cost
from tdefs.trust import check_trusted
from tdefs.yamlfile import let_read

_MAX_PASSPHRASE_BYTES = 65536
_OTHER_OPTIONS = "use --passphrase-file, --passphrase-fd, --key-command or --key-source"


def add_unlock_arguments(
    parser: argparse.ArgumentParser, *, recovery: bool = False, recovery_prompt: bool = True
) -> None:
    """Add the options that say where the secret comes from; more than one is a usage error.

    None takes the secret itself: arguments are visible to every user of the host. ``recovery`` adds those for
    what unlocks but is never chosen by a person as a first secret: a recovery code, and this host.
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
    """Tell whether the command line says where the secret comes from."""
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
    """Return the protector for what :func:`add_unlock_arguments` parsed; no option means the terminal.

    ``keystore`` is the file that it is for: a key command keeps its own files beside it. ``find_source`` returns
    the key source of a name. ``confirm``, for a
    new secret, has the terminal ask twice, or a key command run twice. Nothing is read, asked or run yet: the
    protector does so when it first needs its secret, and then raises TdefsError: NO_SECRET if there is
    none, KEY_COMMAND_FAILED. So a process that goes to the background must unlock before.

    Raises TdefsError: USAGE for --authprompt without a key command, old or new; KEY_COMMAND_FAILED for its
    placeholders.
    """
    if args.key_command is not None:
        return CommandProtector(args.key_command, keystore, authprompt=args.authprompt, confirm=confirm)
    if args.authprompt and getattr(args, "new_key_command", None) is None:
        raise TdefsError(Exit.USAGE, "--authprompt is given, but no key command that could use it")
    if args.key_source is not None:
        return find_source(args.key_source)
    if getattr(args, "recovery_code_file", None) is not None:
        return RecoveryCodeProtector(partial(read_passphrase_file, args.recovery_code_file, "recovery code"))
    if getattr(args, "recovery_code", False):
        return RecoveryCodeProtector(
            partial(ask_passphrase, confirm=False, name="Recovery code", instead="use --recovery-code-file")
        )
    read: Callable[[], bytes]
    if args.passphrase_file is not None:
        read = partial(read_passphrase_file, args.passphrase_file)
    elif args.passphrase_fd is not None:
        read = partial(read_passphrase_descriptor, args.passphrase_fd)
    elif args.passphrase_credential is not None:
        read = partial(read_passphrase_credential, args.passphrase_credential)
    else:
        read = partial(ask_passphrase, confirm=confirm)
    return PassphraseProtector(read, cost=chosen_cost(args))


def read_passphrase_file(path: Path, name: str = "passphrase") -> bytes:
    """Return the content of ``path``, without one newline at its end; warn if other users can read it, too.

    Raises TdefsError: NO_SECRET; CONFIG_EXPOSED if other users could change it.
    """
    check_trusted(path, f"{name} file")
    return _read_file(path, f'{name} file "{path}"', private=True)


def read_passphrase_credential(name: str) -> bytes:
    """Return the content of a credential of systemd, without one newline at its end. TdefsError(NO_SECRET)."""
    return _read_file(credential_path(name), f'credential "{name}"', private=False)


def _read_file(path: Path, what: str, *, private: bool) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if private and stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
                # Only a warning: the database must be able to start.
                print(
                    f"tdefs: warning: the {what} can be read by other users\n"
                    f"HINT:  chmod 600 {shlex.quote(str(path))}",
                    file=sys.stderr,
                )
            return _read_to_end(file.fileno())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        hint = let_read(path, error) if isinstance(error, OSError) else ""
        raise TdefsError(Exit.NO_SECRET, f"could not read the {what}", detail=reason or "", hint=hint) from None


def read_passphrase_descriptor(descriptor: int, name: str = "passphrase") -> bytes:
    """Return what is left to read of ``descriptor``, without one newline at its end.

    The descriptor is closed, unless it is one of the standard three. Raises TdefsError(NO_SECRET).
    """
    try:
        try:
            return _read_to_end(descriptor)
        finally:
            if descriptor > 2:
                os.close(descriptor)
    except OSError as error:
        raise TdefsError(
            Exit.NO_SECRET,
            f"could not read the {name} from file descriptor {descriptor}",
            detail=error.strerror or "",
        ) from None


def ask_passphrase(*, confirm: bool, name: str = "Passphrase", instead: str = _OTHER_OPTIONS) -> bytes:
    """Ask for the passphrase, or what ``name`` says, on the terminal, without echo; return it in UTF-8.

    Raises TdefsError(NO_SECRET) if there is no terminal, the input ends or the second answer differs; its hint is
    ``instead``, what to do where nobody can answer.
    """
    what = name.lower()
    _check_terminal(what, instead)
    passphrase = _ask(f"{name}: ", what, instead)
    if confirm and _ask(f"{name} again: ", what, instead) != passphrase:
        raise TdefsError(Exit.NO_SECRET, "the two passphrases are different")
    return passphrase


def _check_terminal(what: str, instead: str) -> None:
    """Without this, getpass would read a passphrase from stdin, with echo."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise TdefsError(Exit.NO_SECRET, f"there is no terminal to ask for the {what}", hint=instead) from None


def _ask(prompt: str, what: str, instead: str) -> bytes:
    try:
        with warnings.catch_warnings():
            # A terminal whose echo cannot be turned off.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt).encode("utf-8", "surrogateescape")
    except (EOFError, OSError, UnicodeError, getpass.GetPassWarning):
        pass
    # Raised here, without a context: a UnicodeDecodeError carries what was typed.
    raise TdefsError(Exit.NO_SECRET, f"could not read the {what} from the terminal", hint=instead)


def _read_to_end(descriptor: int) -> bytes:
    content = bytearray()
    while block := os.read(descriptor, _MAX_PASSPHRASE_BYTES):
        content += block
        if len(content) > _MAX_PASSPHRASE_BYTES:
            raise TdefsError(Exit.NO_SECRET, f"the passphrase is longer than {_MAX_PASSPHRASE_BYTES} bytes")
    return bytes(content.removesuffix(b"\n"))


def descriptor_number(text: str) -> int:
    """Return the number of a descriptor, for argparse."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError("a file descriptor is a number, such as 3")
    return int(text)

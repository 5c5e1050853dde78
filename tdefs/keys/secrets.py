"""Reading the secret that unlocks a keystore: from a file, a descriptor, a credential, or the terminal."""

from __future__ import annotations

import getpass
import os
import shlex
import stat
import sys
import warnings
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.credential import credential_path
from tdefs.trust import check_trusted
from tdefs.yamlfile import let_read

_MAX_PASSPHRASE_BYTES = 65536
_OTHER_OPTIONS = "use --passphrase-file, --passphrase-fd, --key-command or --key-source"


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

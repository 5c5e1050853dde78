"""Reading the secret that a file, an open descriptor or a systemd credential contains."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

from tdefs.errors import NoSecretError
from tdefs.keys.dialogue import Warn
from tdefs.text import shortened
from tdefs.trust import check_trusted
from tdefs.yamlfile import let_read

#: systemd hands credentials to a unit as files in a directory of its own (systemd.exec(5), LoadCredential=).
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"

#: What systemd takes as the name of a credential.
_NAME = re.compile(r"[!-.0-9;-~]{1,255}", re.ASCII)
_MAX_PASSPHRASE_BYTES = 65536


def read_passphrase_file(path: Path, warn: Warn, name: str = "passphrase") -> bytes:
    """Return the content of ``path``, without one newline at its end; warn if other users can read it, too.

    :raises TdefsError: NO_SECRET; CONFIG_EXPOSED if other users could change it.
    """
    check_trusted(path, f"{name} file")
    return _read_file(path, f'{name} file "{path}"', warn)


def read_passphrase_credential(name: str) -> bytes:
    """Return the content of a systemd credential, without one newline at its end.

    :raises TdefsError: NO_SECRET.
    """
    return _read_file(credential_path(name), f'credential "{name}"', None)


def read_passphrase_descriptor(descriptor: int, name: str = "passphrase") -> bytes:
    """Return what is left to read from ``descriptor``, without one newline at its end.

    The descriptor is closed, unless it is one of the standard three.

    :raises TdefsError: NO_SECRET.
    """
    try:
        try:
            return _read_to_end(descriptor)
        finally:
            if descriptor > 2:
                os.close(descriptor)
    except OSError as error:
        raise NoSecretError(
            f"could not read the {name} from file descriptor {descriptor}",
            detail=error.strerror or "",
        ) from None


def credential_path(name: str) -> Path:
    """Return the file of the credential ``name`` of the unit that this process runs in.

    :raises TdefsError: NO_SECRET.
    """
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise NoSecretError(
            f'"{shortened(name)}" is not the name of a credential, which has no slash and no colon'
        )
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    if not directory:
        raise NoSecretError(
            f'there is no credential "{name}": this process was given none',
            detail=f"the variable {CREDENTIALS_VARIABLE} is not set; systemd sets it for a unit with credentials",
            hint=f"put LoadCredential={name}:FILE, or LoadCredentialEncrypted={name}:FILE, into the unit, and"
            " start tdefs by it",
        )
    path = Path(directory, name)
    if not path.is_file():
        raise NoSecretError(
            f'the unit has no credential "{name}"',
            detail=f'there is no "{path}"',
            hint=f"LoadCredential= or LoadCredentialEncrypted= in the unit must name it: {name}:FILE",
        )
    return path


def _read_file(path: Path, what: str, warn: Warn | None) -> bytes:
    """Return the content; ``warn`` that other users can read it, or say nothing of that without it."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if warn and stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
                # Only a warning: the database must be able to start.
                warn(f"the {what} can be read by other users", hint=f"chmod 600 {shlex.quote(str(path))}")
            return _read_to_end(file.fileno())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "invalid file name"
        hint = let_read(path, error) if isinstance(error, OSError) else ""
        raise NoSecretError(f"could not read the {what}", detail=reason or "", hint=hint) from None


def _read_to_end(descriptor: int) -> bytes:
    content = bytearray()
    while block := os.read(descriptor, _MAX_PASSPHRASE_BYTES):
        content += block
        if len(content) > _MAX_PASSPHRASE_BYTES:
            raise NoSecretError(f"the passphrase is longer than {_MAX_PASSPHRASE_BYTES} bytes")
    return bytes(content.removesuffix(b"\n"))

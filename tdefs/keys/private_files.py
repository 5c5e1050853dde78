"""Files with secrets, and files that a key source needs: whether other users have access, and reading them."""

from __future__ import annotations

import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import Exit, NoSecretError, TdefsError
from tdefs.keys.dialogue import Warn
from tdefs.keys.failures import UnavailableError
from tdefs.text import shortened
from tdefs.trust import check_trusted
from tdefs.yamlfile import let_read

#: The bundle of authorities that Debian trusts takes a quarter of this.
_MAX_BYTES = 1 << 20
#: systemd hands credentials to a unit as files in a directory of its own (systemd.exec(5), LoadCredential=).
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
#: What systemd takes as the name of a credential.
_CREDENTIAL_NAME = re.compile(r"[!-.0-9;-~]{1,255}", re.ASCII)
_MAX_PASSPHRASE_BYTES = 65536


@dataclass(frozen=True)
class Exposure:
    """The way in which other users can reach a file: another user owns it (``foreign``), or its mode lets them.

    ``detail`` says so with the figures, and ``remedy`` is the shell command that closes the file.
    """

    foreign: bool
    detail: str
    remedy: str


def exposure(path: Path, status: os.stat_result) -> Exposure | None:
    """Return how users other than root and the user of this process have access to the path, or None if not.

    Root accepts a file of any user. Group and others may have no permission at all.
    """
    quoted = shlex.quote(os.fspath(path))
    close = f"chmod {'700' if stat.S_ISDIR(status.st_mode) else '600'} {quoted}"
    user = os.geteuid()
    if user != 0 and status.st_uid not in (0, user):
        return Exposure(
            foreign=True,
            detail=f"its owner is user {status.st_uid}, and tdefs runs as user {user}",
            remedy=f"chown {user} {quoted} && {close}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return Exposure(
            foreign=False,
            detail=f"its mode is {mode:04o}, and group and others may have no permission",
            remedy=close,
        )
    return None


def refuse_exposed(path: Path, status: os.stat_result, what: str, *, may_take_over: bool = True) -> None:
    """Check that other users have no access to the file or directory, which is a ``what``, such as "host key".

    :param may_take_over: whether the hint may be to make the file one's own; the daemon of its owner may need it.
    :raises TdefsError: KEYSTORE_EXPOSED.
    """
    exposed = exposure(path, status)
    if exposed:
        how = "belongs to another user" if exposed.foreign else "is accessible to other users"
        raise TdefsError(
            Exit.KEYSTORE_EXPOSED,
            f'the {what} "{path}" {how}',
            detail=exposed.detail,
            hint="" if exposed.foreign and not may_take_over else exposed.remedy,
        )


def read_file(path: Path, what: str, *, secret: bool) -> bytes:
    """Return the content of the ``what`` file.

    :param what: what the file contains, such as "certificate", for messages.
    :param secret: refuse the file if other users have access to it.
    :raises UnavailableError: it cannot be read, or other users have access to it.
    :raises TdefsError: CONFIG_EXPOSED if other users could change it.
    """
    check_trusted(path, f"{what} file")
    try:
        # Nonblocking, so that a FIFO in its place is refused below instead of waited on.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise unfit(path, what, "it is not a regular file")
            if secret:
                _check_private(path, what, status)
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unfit(path, what, error.strerror or "") from None
    if len(data) > _MAX_BYTES:
        raise unfit(path, what, f"it has more than {_MAX_BYTES} bytes")
    return data


def unfit(path: Path, what: str, detail: str, hint: str = "") -> UnavailableError:
    """Return the error for a file that a key source needs and cannot use."""
    return UnavailableError(f'the {what} file "{path}" cannot be used', detail, hint)


def _check_private(path: Path, what: str, status: os.stat_result) -> None:
    exposed = exposure(path, status)
    if exposed:
        foreign = f"it belongs to another user, {status.st_uid}"
        detail = foreign if exposed.foreign else "group or others have access to it"
        raise unfit(path, what, detail, exposed.remedy)


def read_passphrase_file(path: Path, warn: Warn, name: str = "passphrase") -> bytes:
    """Return the content of ``path``, without one newline at its end; warn if other users can read it, too.

    :raises TdefsError: NO_SECRET; CONFIG_EXPOSED if other users could change it.
    """
    check_trusted(path, f"{name} file")
    return _read_passphrase(path, f'{name} file "{path}"', warn)


def read_passphrase_credential(name: str) -> bytes:
    """Return the content of a systemd credential, without one newline at its end.

    :raises TdefsError: NO_SECRET.
    """
    return _read_passphrase(credential_path(name), f'credential "{name}"', None)


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
            f"could not read the {name} from file descriptor {descriptor}", detail=error.strerror or ""
        ) from None


def credential_path(name: str) -> Path:
    """Return the file of the credential ``name`` of the unit that this process runs in.

    :raises TdefsError: NO_SECRET.
    """
    if not _CREDENTIAL_NAME.fullmatch(name) or name in (".", ".."):
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


def _read_passphrase(path: Path, what: str, warn: Warn | None) -> bytes:
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

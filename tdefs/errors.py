"""Errors that reach the user, and the exit codes that are part of the command line's interface."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes of the ``tdefs`` command; each kind of failure has its own (see docs/EXIT-CODES.md)."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    POLICY_INVALID = 3
    CONFIG_INVALID = 4
    CONFIG_EXPOSED = 5
    NOT_A_VOLUME = 10
    VOLUME_EXISTS = 11
    VOLUME_IN_USE = 12
    VOLUME_DAMAGED = 13
    VOLUME_NOT_REGISTERED = 14
    VOLUME_UNSEEN = 15
    VOLUME_REGISTERED = 16
    VOLUME_UNKNOWN = 17
    POLICY_NOT_ACCEPTED = 18
    FILE_UNTRUSTED = 19
    KEYSTORE_MISSING = 20
    KEYSTORE_DAMAGED = 21
    KEYSTORE_FOREIGN = 22
    KEYSTORE_EXPOSED = 23
    WRONG_SECRET = 24
    NO_SECRET = 25
    KEY_COMMAND_FAILED = 26
    DATA_KEY_UNKNOWN = 27
    KEYSTORE_FULL = 28
    PASSPHRASE_TOO_SHORT = 29
    MOUNT_FAILED = 30
    MOUNT_BUSY = 31
    NOT_MOUNTED = 32
    MOUNTPOINT_INVALID = 33
    MOUNT_LOST = 34
    MOUNT_MISPLACED = 35
    FILE_NOT_FOUND = 40
    FILE_DAMAGED = 41
    VERIFY_FOUND_DAMAGE = 42
    DOCTOR_FOUND_RISKS = 43
    VERIFY_INCOMPLETE = 44
    TAMPERING_FOUND = 45
    OS_ERROR = 50
    DATA_KEY_REVOKED = 60
    DATA_KEY_DESTROYED = 61
    DATA_KEY_EXISTS = 62
    DATA_KEY_NEEDED = 63
    PROTECTOR_UNKNOWN = 64
    LAST_PROTECTOR = 65
    KEYSTORE_BUSY = 66
    RECOVERY_CODE_MISTYPED = 67
    DAEMON_NOT_TOLD = 68
    HISTORY_BROKEN = 69
    KEY_SOURCE_UNAVAILABLE = 70
    KEY_SERVER_UNREACHABLE = 71
    KEY_SERVER_UNTRUSTED = 72
    KEY_SERVER_REFUSED = 73
    WRAPPING_KEY_UNUSABLE = 74
    PROCESS_TRACED = 75


class TdefsError(Exception):
    """A failure the user can act on.

    ``message`` is lower case without a full stop, in the manner of PostgreSQL's messages; ``detail`` says
    more about what happened and ``hint`` what to do. None of the three ever contains a secret.
    """

    def __init__(self, exit_code: Exit, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.detail = detail
        self.hint = hint

    def render(self) -> str:
        """Return the text for the terminal or the log: the message, then DETAIL and HINT lines."""
        lines = [f"tdefs: {self.message}"]
        if self.detail:
            lines.append(f"DETAIL:  {self.detail}")
        if self.hint:
            lines.append(f"HINT:  {self.hint}")
        return "\n".join(lines)


class DistinguishedError(TdefsError):
    """A failure that code must distinguish from others: it has a class of its own, which has the exit code."""

    code: ClassVar[Exit]

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(self.code, message, detail=detail, hint=hint)


class VolumeInUseError(DistinguishedError):
    """Another process uses the volume."""

    code = Exit.VOLUME_IN_USE


class KeystoreMissingError(DistinguishedError):
    """There is no keystore at its place."""

    code = Exit.KEYSTORE_MISSING


class KeystoreDamagedError(DistinguishedError):
    """The keystore is not as it was written."""

    code = Exit.KEYSTORE_DAMAGED


class NoSecretError(DistinguishedError):
    """There is no secret: no terminal, an unreadable file, no protector of that kind."""

    code = Exit.NO_SECRET


class DataKeyRevokedError(DistinguishedError):
    """No round of the data key may be used for new files."""

    code = Exit.DATA_KEY_REVOKED


class DataKeyDestroyedError(DistinguishedError):
    """The round of the data key was destroyed."""

    code = Exit.DATA_KEY_DESTROYED


class DaemonNotToldError(DistinguishedError):
    """The daemon of a mounted volume does not use the new keys."""

    code = Exit.DAEMON_NOT_TOLD


def errno_of(error: Exception) -> int:
    """Return the errno that reports *error* to the kernel: EIO for an error that has none of its own."""
    if isinstance(error, OverflowError):
        # an offset or a length that, with the header before it, no file system has
        return errno.EFBIG
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None)  # also of a file that cannot be presented
    return number if isinstance(number, int) and number else errno.EIO


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError in the ``with`` block name *path*, if it names no file: calls on a descriptor do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def from_os_error(error: OSError) -> TdefsError:
    """Return the error for the user about an error of the operating system that no other code has explained."""
    place = f' "{os.fsdecode(error.filename)}"' if error.filename is not None else ""
    hint = ""
    if isinstance(error, PermissionError):
        hint = "run it as root, or as the user to whom the volume belongs"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, and try again"
    return TdefsError(Exit.OS_ERROR, f"{error.strerror or error}{place}", hint=hint)

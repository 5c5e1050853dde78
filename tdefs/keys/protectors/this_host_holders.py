"""What keeps a secret on this host: its TPM, which alone can unseal what the keystore has, or a host key.

A host key is a file, for hosts without a TPM. Each protector has one of its own.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.failures import UnavailableError, UnusableError
from tdefs.keys.hierarchy import SECRET_BYTES
from tdefs.keys.private_files import refuse_exposed
from tdefs.keys.protectors.base import Made, NotMineError, Parameters
from tdefs.keys.protectors.this_host import Holder, new_secret
from tdefs.keys.tpm import NAME_BYTES, Sealed, Tpm
from tdefs.keys.wrapping import hkdf_sha256
from tdefs.private import own_directory, own_place

DEFAULT_DIRECTORY = Path("/var/lib/tdefs/host-keys")

_ID_BYTES = 16
_PURPOSE = b"tdefs v1 host key on machine"
_KEY = re.compile(rb"[0-9a-f]{64}\n")
_AGAIN = "unlock with another secret, and run 'tdefs auto-open enable' again"
PCRS = re.compile(r"(?:(?:1?[0-9]|2[0-3])(?:,(?:1?[0-9]|2[0-3])){0,23})", re.ASCII)
_BASE64 = re.compile(r"[0-9A-Za-z+/=]{4,2048}", re.ASCII)
_PCRS_OR_NONE = re.compile(f"{PCRS.pattern}|", re.ASCII)


class HostKeyHolder(Holder):
    """Files in ``directory`` that only their user can read. They are bound to machine-id(5).

    So a copied file is of no use on another machine, unless the id of the machine is copied with it.
    """

    name = "host-key"
    title = "a host key"
    members = ("host_key",)

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self.directory = directory

    def keep(self, machine: bytes) -> tuple[bytes, dict[str, str | int]]:
        """See Holder. Makes the directory and its parent, too, but no directory above."""
        id, key = os.urandom(_ID_BYTES).hex(), new_secret()
        path = self._path(id)
        try:
            self._make_directory()
            # the file gets the owner of the directory: root may make it for a daemon of another user
            with own_directory(self.directory) as directory:
                directory.write_durably(path.name, f"{key.hex()}\n".encode("ascii"), replace=False)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise TdefsError(
                Exit.OS_ERROR,
                f'could not make the host key "{path}"',
                detail=error.strerror or "",
                hint="a daemon that is not root's needs a directory of its own: see host_key_directory in"
                " docs/KEYS.md",
            ) from None
        return _bound(key, machine), {"host_key": id}

    def fetch(self, params: Parameters, machine: bytes | None, *, here: bool) -> bytes:
        path = self._path_in(params)
        try:
            key = _read(path)
        except (FileNotFoundError, NotADirectoryError):
            if not here:
                raise NotMineError from None
            raise UnusableError(f'the host key "{path}" is not there any more', hint=_AGAIN) from None
        except PermissionError:
            if not here:
                raise NotMineError from None
            raise UnavailableError(
                f'the host key "{path}" belongs to another user',
                hint="run tdefs as root, or as the user for whom auto-open was enabled",
            ) from None
        except OSError as error:
            raise TdefsError(
                Exit.OS_ERROR, f'could not read the host key "{path}"', detail=error.strerror or ""
            ) from None
        if machine is None or not here:
            raise UnusableError(
                f'the host key "{path}" was made on another machine',
                "it is bound to the id in /etc/machine-id, which is another one now",
                _AGAIN,
            )
        return _bound(key, machine)

    def made(self, params: Parameters) -> Made:
        path = self._path_in(params)
        return Made(f'the host key "{path}"', f"rm {shlex.quote(str(path))}")

    def forget(self, params: Parameters) -> None:
        with suppress(FileNotFoundError), own_directory(self.directory) as directory:
            directory.unlink(self._path_in(params).name)
            directory.sync()

    def _path_in(self, params: Parameters) -> Path:
        return self._path(params.hex("host_key", _ID_BYTES).hex())

    def _path(self, id: str) -> Path:
        return self.directory / f"{id}.key"

    def _make_directory(self) -> None:
        for directory, mode in ((self.directory.parent, 0o755), (self.directory, 0o700)):
            with suppress(FileExistsError), own_place(directory) as above:
                os.mkdir(directory.name, mode, dir_fd=above.fd)
                above.sync()
        _check(self.directory, self.directory.stat(), "directory of host keys")


def _bound(key: bytes, machine: bytes) -> bytes:
    return hkdf_sha256(key, _PURPOSE + machine, SECRET_BYTES)


def _read(path: Path) -> bytes:
    """Return the 32 bytes in a host key.

    :raises TdefsError: KEYSTORE_EXPOSED if other users have access to it; WRAPPING_KEY_UNUSABLE if it is damaged.
    :raises OSError: it cannot be read.
    """
    _check(path.parent, path.parent.stat(), "directory of host keys")
    with own_place(path) as directory:
        content = directory.read(
            path.name, 2 * SECRET_BYTES + 2, judge=lambda _, status: _check(path, status, "host key")
        )
    if not _KEY.fullmatch(content):
        raise UnusableError(f'the host key "{path}" is damaged', hint=_AGAIN)
    return bytes.fromhex(content.decode("ascii"))


def _check(path: Path, status: os.stat_result, what: str) -> None:
    """Raise TdefsError(KEYSTORE_EXPOSED) if a user other than its owner and root has access to it."""
    refuse_exposed(path, status, what, may_take_over=False)


class TpmHolder(Holder):
    """The TPM. With ``pcrs``, such as "7", it unseals a new secret only in the present state of the machine.

    Nothing is stored in the TPM, so that nothing is to be removed.
    """

    name = "tpm"
    title = "the TPM"
    members = ("tpm", "public", "private", "pcrs")

    def __init__(self, tpm: Tpm, pcrs: str = "") -> None:
        self._tpm = tpm
        self._pcrs = pcrs

    def keep(self, machine: bytes) -> tuple[bytes, dict[str, str | int]]:
        secret = new_secret()
        sealed = self._tpm.seal(secret, self._pcrs)
        return secret, {
            "tpm": self._tpm.name.hex(),
            "public": base64.b64encode(sealed.public).decode("ascii"),
            "private": base64.b64encode(sealed.private).decode("ascii"),
            "pcrs": sealed.pcrs,
        }

    def fetch(self, params: Parameters, machine: bytes | None, *, here: bool) -> bytes:
        name = params.hex("tpm", NAME_BYTES)
        sealed = Sealed(
            params.base64("public", _BASE64), params.base64("private", _BASE64), params.text("pcrs", _PCRS_OR_NONE)
        )
        try:
            found = self._tpm.name
        except TdefsError:
            if here:
                raise
            raise NotMineError from None
        if found != name:
            if not here:
                raise NotMineError
            raise UnusableError(
                "the TPM of this machine is not the one that auto-open was enabled with",
                "it was cleared or replaced, or this machine is a copy of another one",
                _AGAIN,
            )
        return self._tpm.unseal(sealed)

    def like(self, params: Parameters) -> TpmHolder:
        """See Holder. The same PCRs are asked for. Their present values have just opened the entry."""
        return TpmHolder(self._tpm, params.text("pcrs", _PCRS_OR_NONE))

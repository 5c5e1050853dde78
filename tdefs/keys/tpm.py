"""Sealing a key in this host's TPM, by the programs of tpm2-tools.

A key is sealed under the storage primary key. The TPM derives that from a seed of its own, and it is the same
each time until the TPM is cleared. The sealed key is stored elsewhere, and only this TPM can load it. Nothing is
stored in the TPM or on a disk by this module: the programs exchange files in memory, and secrets go through
pipes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from tdefs.errors import TdefsError
from tdefs.keys.failures import RefusedError, UnavailableError, UnusableError

#: The kernel's device with a resource manager, for several users of the TPM.
DEVICE = Path("/dev/tpmrm0")
#: The variable that names another TPM to tpm2-tools(1).
TCTI_VARIABLE = "TPM2TOOLS_TCTI"
NAME_BYTES = 34
SEALED_BYTES = 32

# A TPM is slow.
_TIMEOUT_SECONDS = 30.0
_SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Written out: the defaults of another version would make another primary key, and no sealed key could be loaded.
_PRIMARY = (
    *("-C", "o", "-g", "sha256", "-G", "ecc256:aes128cfb"),
    *("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt"),
)
# noda: there is no password to guess, so a TPM that is locked after wrong guesses at other keys need not refuse.
_SEALED = "fixedtpm|fixedparent|noda"
_PCR_BANK = "sha256"
_POLICY_CODES = (0x99D, 0x128)  # TPM_RC_POLICY_FAIL of session 1, TPM_RC_PCR_CHANGED
_AUTH_CODES = (0x9A2, 0x98E, 0x921)  # TPM_RC_BAD_AUTH, TPM_RC_AUTH_FAIL, TPM_RC_LOCKOUT
_ERROR = re.compile(r"^ERROR: (Esys_\w+\(0x([0-9A-Fa-f]+)\)[ -~]{0,160})$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True)
class Sealed:
    """What a TPM sealed: two opaque parts, and the PCRs (such as "7", or "" for none) that it checks."""

    public: bytes
    private: bytes
    pcrs: str = ""


class Tpm:
    """The TPM of this host: the one behind /dev/tpmrm0, or the one that TPM2TOOLS_TCTI names.

    Each method raises UnavailableError if the programs or the TPM are missing or do not answer, RefusedError if
    the TPM does not do what is asked (another boot state, a password), and UnusableError for a key that it cannot
    load.
    """

    def __init__(self, tcti: str | None = None) -> None:
        # Without one, tpm2-tools would also try a simulator on a port that any user can open.
        self._tcti = tcti or os.environ.get(TCTI_VARIABLE) or f"device:{DEVICE}"

    def is_there(self) -> bool:
        """Return whether this host has a TPM, or the variable names one; it may still not answer."""
        return self._tcti != f"device:{DEVICE}" or DEVICE.exists()

    @property
    def name(self) -> bytes:
        """The name of the storage primary key, 34 bytes; another TPM, or this one once cleared, has another."""
        return self._primary[1]

    def seal(self, secret: bytes, pcrs: str = "") -> Sealed:
        """Seal ``secret``, 32 bytes; with ``pcrs`` it is unsealed only while these have their present values."""
        with _Files() as files:
            parent, public, private = files.new(self._primary[0]), files.new(), files.new()
            words = ["-C", parent, "-g", "sha256", "-i", "-", "-u", public, "-r", private]
            if pcrs:
                policy = files.new()
                self._run(files, "createpolicy", "--policy-pcr", "-l", f"{_PCR_BANK}:{pcrs}", "-L", policy)
                words += ["-L", policy, "-a", _SEALED]
            else:
                words += ["-a", f"{_SEALED}|userwithauth"]
            with self._session(files, parent, "--hmac-session") as session:
                self._run(files, "create", *words, "-P", f"session:{session}", secret=secret)
            return Sealed(files.read(public), files.read(private), pcrs)

    def unseal(self, sealed: Sealed) -> bytes:
        """Return the secret, 32 bytes."""
        with _Files() as files:
            parent, loaded = files.new(self._primary[0]), files.new()
            public, private = files.new(sealed.public), files.new(sealed.private)
            self._run(files, "load", "-C", parent, "-u", public, "-r", private, "-c", loaded)
            kind = "--policy-session" if sealed.pcrs else "--hmac-session"
            with self._session(files, parent, kind) as session:
                if sealed.pcrs:
                    self._run(files, "policypcr", "-S", session, "-l", f"{_PCR_BANK}:{sealed.pcrs}")
                secret = self._run(files, "unseal", "-c", loaded, "-p", f"session:{session}")
        if len(secret) != SEALED_BYTES:
            raise UnusableError("the TPM returned something that is not a key")
        return secret

    @contextmanager
    def _session(self, files: _Files, key: str, kind: str) -> Iterator[str]:
        """Provide a session in which parameters are encrypted on their way, for a ``with`` block.

        The TPM may be a chip on a bus, and somebody may listen between it and the processor. The session's key
        comes from a salt that is encrypted for the storage primary key, ``key``. Only the TPM can decrypt it.
        """
        session = files.new()
        self._run(files, "startauthsession", kind, "-S", session, "--tpmkey-context", key)
        try:
            self._run(files, "sessionconfig", session, "--enable-decrypt", "--enable-encrypt")
            yield session
        finally:
            with suppress(TdefsError):
                self._run(files, "flushcontext", session)

    @cached_property
    def _primary(self) -> tuple[bytes, bytes]:
        """The saved context of the storage primary key, and its name."""
        if not self.is_there():
            raise UnavailableError(f'this host has no TPM: there is no "{DEVICE}"')
        with _Files() as files:
            context, name = files.new(), files.new()
            self._run(files, "createprimary", *_PRIMARY, "-c", context)
            self._run(files, "readpublic", "-c", context, "-n", name)
            return files.read(context), files.read(name)

    def _run(self, files: _Files, tool: str, *words: str, secret: bytes = b"") -> bytes:
        """Run one of the programs with ``secret`` on its stdin; return its stdout."""
        # Nothing else from the environment: by TSS2_LOG the library would print what it sends.
        environment = {"PATH": _SAFE_PATH, "LC_ALL": "C", TCTI_VARIABLE: self._tcti}
        try:
            try:
                done = subprocess.run(
                    [f"tpm2_{tool}", "-Q", *words],
                    input=secret,
                    capture_output=True,
                    timeout=_TIMEOUT_SECONDS,
                    pass_fds=files.descriptors,
                    env=environment,
                    check=False,
                )
            finally:
                self._flush(environment)
        except OSError as error:
            raise UnavailableError(
                f"the TPM cannot be used: tpm2_{tool} of tpm2-tools cannot be run",
                detail=error.strerror or "",
                hint="apt install tpm2-tools",
            ) from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"the TPM did not answer within {_TIMEOUT_SECONDS:g} seconds") from None
        if done.returncode != 0:
            raise _explained(tool, done.stderr.decode("ascii", "replace"))
        return done.stdout

    def _flush(self, environment: dict[str, str]) -> None:
        """Remove what a program has loaded: without a resource manager it stays, and there is room for three."""
        if self._tcti == f"device:{DEVICE}":
            return
        for loaded in ("-t", "-l"):  # keys; sessions, which createpolicy leaves
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    ["tpm2_flushcontext", "-Q", loaded],
                    capture_output=True,
                    timeout=_TIMEOUT_SECONDS,
                    env=environment,
                    check=False,
                )


class _Files:
    """Files in memory that other programs open by paths, for the time of a ``with`` block."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def new(self, content: bytes = b"") -> str:
        descriptor = os.memfd_create("tdefs-tpm")
        self.descriptors.append(descriptor)
        os.pwrite(descriptor, content, 0)
        return f"/dev/fd/{descriptor}"

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()


def _explained(tool: str, said: str) -> TdefsError:
    """Return the error for what a program printed about the TPM's answer. These lines hold codes and no data."""
    found: Sequence[tuple[str, str]] = _ERROR.findall(said)
    if not found:
        return UnavailableError(
            "the TPM cannot be reached",
            f"tpm2_{tool} got no answer from it",
            f"the user who runs tdefs must be root or in the group of {DEVICE} (tss)",
        )
    detail, code = found[-1][0], int(found[-1][1], 16)
    if code in _POLICY_CODES:
        return RefusedError(
            "the TPM does not release the key: the state of the machine is not the one the key is bound to",
            detail,
            "something that the PCRs measure was changed, such as firmware, Secure Boot or boot loader;"
            " if that was you, unlock with another secret, and 'tdefs auto-open enable' again",
        )
    if code in _AUTH_CODES:
        return RefusedError(
            "the TPM wants a password for its owner hierarchy, or is locked after wrong passwords", detail
        )
    if tool in ("load", "unseal"):
        return UnusableError("the TPM refuses the key that it once sealed", detail)
    return RefusedError(f"the TPM refused tpm2_{tool}", detail)

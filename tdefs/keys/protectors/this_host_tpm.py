"""This host's TPM as the holder of a secret: the keystore has it sealed, and only this TPM can unseal it."""

from __future__ import annotations

import base64
import re

from tdefs.errors import TdefsError
from tdefs.keys.failures import UnusableError
from tdefs.keys.protectors.base import NotMineError, Parameters
from tdefs.keys.protectors.this_host import Holder, new_secret
from tdefs.keys.tpm import NAME_BYTES, Sealed, Tpm

PCRS = re.compile(r"(?:(?:1?[0-9]|2[0-3])(?:,(?:1?[0-9]|2[0-3])){0,23})", re.ASCII)

_AGAIN = "unlock with another secret, and run 'tdefs auto-open enable' again"
_BASE64 = re.compile(r"[0-9A-Za-z+/=]{4,2048}", re.ASCII)
_PCRS_OR_NONE = re.compile(f"{PCRS.pattern}|", re.ASCII)


class TpmHolder(Holder):
    """The TPM. With ``pcrs``, such as "7", it unseals a new secret only in the present state of the machine."""

    name = "tpm"
    title = "the TPM"
    members = ("tpm", "public", "private", "pcrs")

    def __init__(self, tpm: Tpm, pcrs: str = "") -> None:
        self._tpm = tpm
        self._pcrs = pcrs

    def keep(self, machine: bytes) -> tuple[bytes, dict[str, str | int]]:
        """See Holder."""
        del machine
        secret = new_secret()
        sealed = self._tpm.seal(secret, self._pcrs)
        return secret, {
            "tpm": self._tpm.name.hex(),
            "public": base64.b64encode(sealed.public).decode("ascii"),
            "private": base64.b64encode(sealed.private).decode("ascii"),
            "pcrs": sealed.pcrs,
        }

    def fetch(self, params: Parameters, machine: bytes | None, *, here: bool) -> bytes:
        """See Holder."""
        del machine
        name = params.hex("tpm", NAME_BYTES)
        sealed = Sealed(
            params.base64("public", _BASE64),
            params.base64("private", _BASE64),
            params.text("pcrs", _PCRS_OR_NONE),
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

    def made(self, params: Parameters) -> None:
        """See Holder. Nothing is stored in the TPM."""

    def forget(self, params: Parameters) -> None:
        """See Holder. Nothing is stored in the TPM."""

"""This host's TPM as the holder of a secret: the keystore has it sealed, and only this TPM can unseal it."""

from __future__ import annotations

import base64
import binascii
import re

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.fields import MalformedError
from tdefs.keys.protectors.base import NotMineError
from tdefs.keys.protectors.this_host import Holder, Params, new_secret
from tdefs.keys.tpm import NAME_BYTES, Sealed, Tpm

PCRS = re.compile(r"(?:(?:1?[0-9]|2[0-3])(?:,(?:1?[0-9]|2[0-3])){0,23})", re.ASCII)

_AGAIN = "unlock with another secret, and run 'tdefs auto-open enable' again"
_BASE64 = re.compile(r"[0-9A-Za-z+/=]{4,2048}", re.ASCII)
_PCRS_OR_NONE = re.compile(f"{PCRS.pattern}|", re.ASCII)


class TpmHolder(Holder):
    """The TPM. With ``pcrs``, such as "7", it gives new secrets only in the present state of the machine."""

    name = "tpm"
    title = "the TPM"
    members = ("tpm", "public", "private", "pcrs")

    def __init__(self, tpm: Tpm, pcrs: str = "") -> None:
        self._tpm = tpm
        self._pcrs = pcrs

    def keep(self, machine: bytes) -> tuple[bytes, Params]:
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

    def fetch(self, params: Params, where: str, machine: bytes | None, *, here: bool) -> bytes:
        """See Holder."""
        del machine
        name = fields.read_hex(params["tpm"], f"{where}: tpm", NAME_BYTES)
        sealed = Sealed(
            _read_base64(params["public"], f"{where}: public"),
            _read_base64(params["private"], f"{where}: private"),
            fields.read_text(params["pcrs"], f"{where}: pcrs", _PCRS_OR_NONE),
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
            raise TdefsError(
                Exit.WRAPPING_KEY_UNUSABLE,
                "the TPM of this machine is not the one that auto-open was enabled with",
                detail="it was cleared or replaced, or this machine is a copy of another one",
                hint=_AGAIN,
            )
        return self._tpm.unseal(sealed)

    def like(self, params: Params) -> TpmHolder:
        """See Holder. The same PCRs are asked for, with their present values, at which it has just been opened."""
        return TpmHolder(self._tpm, str(params["pcrs"]))

    def made(self, params: Params) -> None:
        """See Holder. Nothing is stored in the TPM."""

    def forget(self, params: Params) -> None:
        """See Holder. Nothing is stored in the TPM."""


def _read_base64(value: str | int, where: str) -> bytes:
    text = fields.read_text(value, where, _BASE64)
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise MalformedError(f"{where}: expected base64") from None

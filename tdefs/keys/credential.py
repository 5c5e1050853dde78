"""Credentials that systemd hands to a unit: files in a directory of its own (systemd.exec(5), LoadCredential=)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tdefs.errors import Exit, TdefsError

DIRECTORY_VARIABLE = "CREDENTIALS_DIRECTORY"

#: What systemd takes as the name of a credential.
_NAME = re.compile(r"[!-.0-9;-~]{1,255}", re.ASCII)


def credential_path(name: str) -> Path:
    """Return the file of the credential ``name`` of the unit that this process runs in. TdefsError(NO_SECRET)."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise TdefsError(
            Exit.NO_SECRET, f"{name[:64]!a} is no name of a credential, which has no slash and no colon"
        )
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory:
        raise TdefsError(
            Exit.NO_SECRET,
            f'there is no credential "{name}": this process was given none',
            detail=f"the variable {DIRECTORY_VARIABLE} is not set, which systemd sets for a unit with credentials",
            hint=f"put LoadCredential={name}:FILE, or LoadCredentialEncrypted={name}:FILE, into the unit, and"
            " start tdefs by it",
        )
    path = Path(directory, name)
    if not path.is_file():
        raise TdefsError(
            Exit.NO_SECRET,
            f'the unit has no credential "{name}"',
            detail=f'there is no "{path}"',
            hint=f"LoadCredential= or LoadCredentialEncrypted= in the unit must name it: {name}:FILE",
        )
    return path

"""Which machine this is: its id, which systemd (or D-Bus) gives an installation once, and a name made from it."""

from __future__ import annotations

import re
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.kdf import hkdf_sha256

MACHINE_ID_FILE = Path("/etc/machine-id")
NAME_BYTES = 16

_NAME_PURPOSE = b"tdefs v1 machine name"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


def machine_id(path: Path = MACHINE_ID_FILE) -> bytes:
    """Return the 16 bytes of machine-id(5). Raises TdefsError(KEY_SOURCE_UNAVAILABLE) if there is none."""
    try:
        text = path.read_text("ascii", "replace").strip()
    except OSError:
        text = ""
    if not _ID.fullmatch(text):
        raise TdefsError(
            Exit.KEY_SOURCE_UNAVAILABLE,
            f'this machine has no id: "{path}" is missing or holds none',
            hint="make one as root with systemd-machine-id-setup, or dbus-uuidgen --ensure=/etc/machine-id",
        )
    return bytes.fromhex(text)


def machine_name(id: bytes) -> str:
    """Return 32 hexadecimal digits that stand for the machine; machine-id(5) asks not to show the id itself."""
    return hkdf_sha256(id, _NAME_PURPOSE, NAME_BYTES).hex()

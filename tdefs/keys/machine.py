"""Which machine this is, and whether Secure Boot started it.

systemd (or D-Bus) gives each installation an id once. tdefs shows only a name that is made from it.
"""

from __future__ import annotations

import re
from pathlib import Path

from tdefs.keys.failures import UnavailableError
from tdefs.keys.wrapping import hkdf_sha256

MACHINE_ID_FILE = Path("/etc/machine-id")
NAME_BYTES = 16

_NAME_PURPOSE = b"tdefs v1 machine name"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
#: By the kernel's documentation (filesystems/efivarfs) the file has four bytes of attributes, then the variable.
#: Its name ends in the GUID of the UEFI specification's own variables.
_SECURE_BOOT = Path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
_ATTRIBUTE_BYTES = 4


def machine_id(path: Path = MACHINE_ID_FILE) -> bytes:
    """Return the 16 bytes of machine-id(5).

    :raises UnavailableError: there is none.
    """
    try:
        text = path.read_text("ascii", "replace").strip()
    except OSError:
        text = ""
    if not _ID.fullmatch(text):
        raise UnavailableError(
            f'this machine has no id: "{path}" is missing or holds none',
            hint="make one as root with systemd-machine-id-setup, or dbus-uuidgen --ensure=/etc/machine-id",
        )
    return bytes.fromhex(text)


def machine_name(id: bytes) -> str:
    """Return 32 hexadecimal digits that stand for the machine; machine-id(5) asks not to show the id itself."""
    return hkdf_sha256(id, _NAME_PURPOSE, NAME_BYTES).hex()


def secure_boot_is_on(variable: Path = _SECURE_BOOT) -> bool:
    """Return whether Secure Boot is on; without the variable, or if it cannot be read, it is not."""
    try:
        return variable.read_bytes()[_ATTRIBUTE_BYTES:] == b"\x01"
    except OSError:
        return False

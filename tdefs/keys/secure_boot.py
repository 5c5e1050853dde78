"""Whether this machine was started with Secure Boot, as its firmware says."""

from __future__ import annotations

from pathlib import Path

#: By the kernel's documentation (filesystems/efivarfs): four bytes of attributes, then the variable; its name ends
#: in the GUID of the UEFI specification's own variables.
_VARIABLE = Path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
_ATTRIBUTE_BYTES = 4


def secure_boot_is_on(variable: Path = _VARIABLE) -> bool:
    """Tell whether Secure Boot is on; where there is no such variable, or it cannot be read, it is not."""
    try:
        return variable.read_bytes()[_ATTRIBUTE_BYTES:] == b"\x01"
    except OSError:
        return False

"""The this-host protector: one machine opens the keystore without a person, and a copy elsewhere does not.

systemd (or D-Bus) gives each installation an id once. tdefs shows only a name that is made from it.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tdefs.errors import Exit, TdefsError
from tdefs.keys.failures import UnavailableError
from tdefs.keys.fields import MalformedError
from tdefs.keys.hierarchy import SECRET_BYTES
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.protectors.base import (
    Made,
    NotMineError,
    Obtained,
    Parameters,
    Protector,
    WrongSecretError,
    malformed_is_damage,
)
from tdefs.keys.wrapping import WrapContext, hkdf_sha256

_MEMBERS = ("by", "machine")
MACHINE_ID_FILE = Path("/etc/machine-id")
NAME_BYTES = 16
_NAME_PURPOSE = b"tdefs v1 machine name"
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
#: By the kernel's documentation (filesystems/efivarfs) the file has four bytes of attributes, then the variable.
#: Its name ends in the GUID of the UEFI specification's own variables.
_SECURE_BOOT = Path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
_ATTRIBUTE_BYTES = 4


class HostRefusedError(WrongSecretError):
    """The entry was made on this host, which does not open it now; the exit code gives the reason."""

    def __init__(self, exit_code: Exit, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.exit_code = exit_code


class Holder(ABC):
    """What keeps a secret on this host: its TPM, or a file."""

    #: Its name in the parameters of an entry.
    name: ClassVar[str]
    #: Its name for people.
    title: ClassVar[str]
    #: The names of the parameters that :meth:`keep` returns.
    members: ClassVar[Sequence[str]]

    @abstractmethod
    def keep(self, machine: bytes) -> tuple[bytes, Mapping[str, str | int]]:
        """Return a new secret of 32 bytes, and the parameters by which :meth:`fetch` finds it again.

        :param machine: the id of this machine.
        :raises TdefsError: it cannot be kept.
        """

    @abstractmethod
    def fetch(self, params: Parameters, machine: bytes | None, *, here: bool) -> bytes:
        """Return the secret.

        :param machine: the id of this machine, if it has one.
        :param here: whether the entry was made on a machine with that id.
        :raises NotMineError: the entry was made on another host.
        :raises MalformedError: for parameters that :meth:`keep` never returns.
        :raises TdefsError: this host does not have the secret any more, or does not give it.
        """

    def like(self, params: Parameters) -> Holder:
        """Return a holder that keeps a new secret on the same conditions as that of these parameters."""
        return self

    def made(self, params: Parameters) -> Made | None:
        """Return what :meth:`keep` left on this host for these parameters, if anything."""
        return None

    def forget(self, params: Parameters) -> None:
        """Remove what :meth:`keep` left on this host for these parameters, if anything.

        :raises OSError: it cannot be removed.
        """
        return


class ThisHostProtector(Protector):
    """This host. It opens the entries that were made on it, and wraps with one of its ``holders``."""

    kind = "this-host"
    words = "this host"
    purpose = b"tdefs v1 this-host wrapping key"

    def __init__(
        self, holders: Sequence[Holder], *, keeper: Holder | None = None, machine_id_file: Path = MACHINE_ID_FILE
    ) -> None:
        """``holders`` can fetch a secret. ``keeper``, one of them, is to keep the secret of a new entry."""
        super().__init__()
        self._holders = {holder.name: holder for holder in holders}
        self._keeper = keeper
        self._machine_id_file = machine_id_file
        # A TPM is slow, and opening a keystore asks for the same secret more than once.
        self._fetched: dict[frozenset[tuple[str, str | int]], bytes] = {}

    def obtain(self, context: WrapContext) -> Obtained:
        """See Protector.

        :raises TdefsError: KEY_SOURCE_UNAVAILABLE, KEY_SERVER_REFUSED, OS_ERROR.
        """
        if self._keeper is None:
            raise ValueError("nothing is chosen to keep the secret")
        machine = machine_id(self._machine_id_file)
        secret, params = self._keeper.keep(machine)
        return Obtained(secret, {"by": self._keeper.name, "machine": machine_name(machine), **params})

    def recover(self, params: Parameters, context: WrapContext) -> bytes:
        """See Protector. NotMineError is raised for entries of other hosts, too.

        :raises HostRefusedError: the entry was made on this host, and the secret cannot be had now.
        """
        key = params.identity
        if key not in self._fetched:
            self._fetched[key] = self._fetch(params)
        return self._fetched[key]

    def wrong_secret(self, params: Parameters) -> WrongSecretError:
        title = self._holder(params).title
        return HostRefusedError(
            Exit.WRAPPING_KEY_UNUSABLE, f"the secret that {title} keeps is not the one of this keystore"
        )

    def parameters(self, entry: ProtectorEntry) -> Parameters:
        """See Protector. The members depend on the holder, which an entry names."""
        if entry.kind != self.kind:
            raise NotMineError
        holder = self._holders.get(str(entry.params.get("by")))
        if holder is None:
            raise MalformedError(f"protector {entry.id}: by: expected one of {', '.join(self._holders)}")
        return Parameters(entry, (*_MEMBERS, *holder.members))

    def like(self, entry: ProtectorEntry) -> ThisHostProtector:
        """See Protector. The same holder keeps it, on the same conditions."""
        with malformed_is_damage():
            params = self.parameters(entry)
            keeper = self._holder(params).like(params)
        return ThisHostProtector(
            list(self._holders.values()), keeper=keeper, machine_id_file=self._machine_id_file
        )

    def title(self, entry: ProtectorEntry) -> str:
        """Return the name for people of what keeps the secret of the entry."""
        holder = self._holders.get(str(entry.params.get("by")))
        return "something unknown" if holder is None else holder.title

    def made(self, entry: ProtectorEntry) -> Made | None:
        with malformed_is_damage():
            params = self.parameters(entry)
            return self._holder(params).made(params)

    def forget(self, entry: ProtectorEntry) -> None:
        with malformed_is_damage():
            params = self.parameters(entry)
            self._holder(params).forget(params)

    def _holder(self, params: Parameters) -> Holder:
        return self._holders[params.choice("by", self._holders)]

    def _fetch(self, params: Parameters) -> bytes:
        try:
            machine = machine_id(self._machine_id_file)
        except TdefsError:
            machine = None
        made_on = params.hex("machine", NAME_BYTES).hex()
        here = machine is not None and machine_name(machine) == made_on
        try:
            return self._holder(params).fetch(params, machine, here=here)
        except TdefsError as error:
            raise HostRefusedError(error.exit_code, error.message, detail=error.detail, hint=error.hint) from None


def new_secret() -> bytes:
    """Return a new random secret, 32 bytes."""
    return os.urandom(SECRET_BYTES)


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

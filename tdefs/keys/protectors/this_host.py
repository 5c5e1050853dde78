"""The this-host protector: one machine opens the keystore without a person, and a copy elsewhere does not."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tdefs.errors import Exit, TdefsError
from tdefs.keys import fields
from tdefs.keys.hierarchy import SECRET_BYTES
from tdefs.keys.kdf import hkdf_sha256
from tdefs.keys.keystore.entries import ProtectorEntry, damaged
from tdefs.keys.machine import MACHINE_ID_FILE, NAME_BYTES, machine_id, machine_name
from tdefs.keys.protectors.base import Made, NotMineError, Protector, WrappedProtectorKey, WrongSecretError
from tdefs.keys.wrapping import UnwrapFailedError, WrapContext, unwrap_secret, wrap_secret

Params = Mapping[str, str | int]

_PURPOSE = b"tdefs v1 this-host wrapping key"
_WRAPPING_KEY_BYTES = 32


class HostRefusedError(WrongSecretError):
    """The entry was made on this host, which does not open it now; the exit code says why."""

    def __init__(self, exit_code: Exit, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.exit_code = exit_code


class Holder(ABC):
    """What keeps a secret on this host: its TPM, or a file."""

    #: As it stands in an entry's parameters.
    name: ClassVar[str]
    #: For people.
    title: ClassVar[str]
    #: Names of the parameters that :meth:`keep` returns.
    members: ClassVar[Sequence[str]]

    @abstractmethod
    def keep(self, machine: bytes) -> tuple[bytes, Params]:
        """Return a new secret of 32 bytes, and the parameters by which :meth:`fetch` finds it again.

        ``machine`` is the id of this machine. Raises TdefsError.
        """

    @abstractmethod
    def fetch(self, params: Params, where: str, machine: bytes | None, *, here: bool) -> bytes:
        """Return the secret.

        ``machine`` is the id of this machine, if it has one, and ``here`` tells whether it is that of the machine
        that the entry was made on. ``where`` names the entry.
        Raises NotMineError if that was another host, MalformedError for parameters that :meth:`keep` never
        returns, TdefsError if this host does not have the secret any more or does not give it.
        """

    def like(self, params: Params) -> Holder:
        """Return what keeps a new secret on the conditions of these parameters."""
        del params
        return self

    @abstractmethod
    def made(self, params: Params) -> Made | None:
        """Return what :meth:`keep` left on this host for these parameters, if anything."""

    @abstractmethod
    def forget(self, params: Params) -> None:
        """Remove what :meth:`keep` left on this host for these parameters. Raises OSError."""


class ThisHostProtector(Protector):
    """This host. It opens the entries that were made on it, and wraps with one of its ``holders``."""

    kind = "this-host"
    words = "this host"

    def __init__(
        self, holders: Sequence[Holder], *, keeper: Holder | None = None, machine_id_file: Path = MACHINE_ID_FILE
    ) -> None:
        """``keeper``, one of the ``holders`` that know how to fetch, is to keep what is wrapped."""
        self._holders = {holder.name: holder for holder in holders}
        self._keeper = keeper
        self._machine_id_file = machine_id_file
        # A TPM takes its time, and to open a keystore is to ask more than once.
        self._fetched: dict[bytes, bytes] = {}

    def wrap(self, protector_key: bytes, context: WrapContext) -> WrappedProtectorKey:
        """See Protector. Raises TdefsError: KEY_SOURCE_UNAVAILABLE, KEY_SERVER_REFUSED, OS_ERROR."""
        if self._keeper is None:
            raise ValueError("nothing is chosen to keep the secret")
        machine = machine_id(self._machine_id_file)
        secret, params = self._keeper.keep(machine)
        wrapped = wrap_secret(_wrapping_key(secret, context), protector_key, context)
        return WrappedProtectorKey({"by": self._keeper.name, "machine": machine_name(machine), **params}, wrapped)

    def unwrap(self, entry: ProtectorEntry, context: WrapContext) -> bytes:
        """See Protector. NotMineError is for entries of other hosts, too; HostRefusedError says what is wrong."""
        holder = self._holder(entry)
        secret = self._fetched.get(entry.wrapped)
        if secret is None:
            secret = self._fetched[entry.wrapped] = self._fetch(holder, entry)
        try:
            return unwrap_secret(_wrapping_key(secret, context), entry.wrapped, context)
        except UnwrapFailedError:
            raise HostRefusedError(
                Exit.WRAPPING_KEY_UNUSABLE, f"the secret that {holder.title} keeps is not the one of this keystore"
            ) from None

    def like(self, entry: ProtectorEntry) -> ThisHostProtector:
        """See Protector. The same holder keeps it, on the same conditions."""
        keeper = self._holder(entry).like(entry.params)
        return ThisHostProtector(
            list(self._holders.values()), keeper=keeper, machine_id_file=self._machine_id_file
        )

    def title(self, entry: ProtectorEntry) -> str:
        """Return what keeps the secret of the entry, for people."""
        holder = self._holders.get(str(entry.params.get("by")))
        return "something unknown" if holder is None else holder.title

    def made(self, entry: ProtectorEntry) -> Made | None:
        """See Protector."""
        return self._holder(entry).made(entry.params)

    def forget(self, entry: ProtectorEntry) -> None:
        """See Protector."""
        self._holder(entry).forget(entry.params)

    def _holder(self, entry: ProtectorEntry) -> Holder:
        if entry.kind != self.kind:
            raise NotMineError
        holder = self._holders.get(str(entry.params.get("by")))
        if holder is None:
            raise damaged(f"protector {entry.id}: by: expected one of {', '.join(self._holders)}")
        return holder

    def _fetch(self, holder: Holder, entry: ProtectorEntry) -> bytes:
        where = f"protector {entry.id}"
        try:
            machine = machine_id(self._machine_id_file)
        except TdefsError:
            machine = None
        try:
            members = fields.read_object(dict(entry.params), where, ("by", "machine", *holder.members))
            made_on = fields.read_hex(members["machine"], f"{where}: machine", NAME_BYTES).hex()
            here = machine is not None and machine_name(machine) == made_on
            return holder.fetch(members, where, machine, here=here)
        except fields.MalformedError as error:
            raise damaged(str(error)) from None
        except TdefsError as error:
            raise HostRefusedError(error.exit_code, error.message, detail=error.detail, hint=error.hint) from None


def new_secret() -> bytes:
    """Return a new random secret, 32 bytes."""
    return os.urandom(SECRET_BYTES)


def _wrapping_key(secret: bytes, context: WrapContext) -> bytes:
    return hkdf_sha256(secret, _PURPOSE + context.to_bytes(), _WRAPPING_KEY_BYTES)

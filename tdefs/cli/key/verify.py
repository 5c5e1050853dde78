"""``tdefs key verify``: whether each protector and each round can be unwrapped now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_table
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.this_host import holders
from tdefs.cli.common.unlocking import KeystoreAccess, open_recorded, read_keystore, unlocking_secret
from tdefs.errors import Exit, KeystoreDamagedError, NoSecretError, TdefsError
from tdefs.keys.keystore.checking import check_protector, check_round
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import Unlocked
from tdefs.keys.keystore.wrapped_keys import open_master_key
from tdefs.keys.protectors.base import NotMineError, Protector
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.volume.description import Volume

#: Returns a protector that needs no person; it raises TdefsError for an unusable one.
Maker = Callable[[], Protector]


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """Of ``tdefs key verify``."""

    volume: VolumeChoice
    access: KeystoreAccess


def run_verify(invocation: Invocation, options: VerifyOptions) -> int:
    """``tdefs key verify``: changes nothing.

    :raises TdefsError: KEYSTORE_DAMAGED if a protector or a round leads nowhere; what a key source or this host
        raises that does not open its own protector.
    """
    access, volume = options.access, options.volume.find()
    keystore = read_keystore(access, volume)
    unlocked = open_recorded(keystore, unlocking_secret(access, volume, keystore), invocation.command)
    document, master = unlocked.document, unlocked.master
    errors: list[TdefsError] = []

    def tried(check: Callable[[], str]) -> str:
        try:
            return check()
        except TdefsError as error:
            errors.append(error)
            return f"{error.message}: {error.detail}" if error.detail else error.message

    rows = []
    for entry in document.protectors:
        makers = dict(_without_person(access, volume, entry))
        result = tried(partial(_check_protector, unlocked, entry, makers))
        rows.append((f"protector {entry.id}", result))
    for key in document.data_keys:
        for one in key.rounds:

            def check(name: str = key.name, number: int = one.round) -> str:
                return "unwraps" if check_round(document, name, number, master) else "destroyed"

            rows.append((f"data key {key.name} round {one.round}", tried(check)))
    print_table(("what", "result"), rows)
    damage = [error for error in errors if isinstance(error, KeystoreDamagedError)]
    if errors:
        first = (damage or errors)[0]
        raise TdefsError(
            first.exit_code,
            "not all of the keystore can be unwrapped now",
            detail=first.detail or first.message,
            hint=first.hint,
        )
    return Exit.OK


def _check_protector(unlocked: Unlocked, entry: ProtectorEntry, makers: dict[str, Maker]) -> str:
    """Return the way in which a protector opens, or that only its secret is missing."""
    document, master = unlocked.document, unlocked.master
    if entry.id == unlocked.protector_id:
        return f"opens {master.name} with the secret given"
    refusal: TdefsError | None = None
    for name, make in makers.items():
        try:
            open_master_key(document, entry, make())
        except (NotMineError, NoSecretError):  # such as a PIN, which nobody is there to type
            continue
        except TdefsError as error:
            refusal = refusal or error
            continue
        return f"opens {master.name} by {name}"
    if refusal is not None:
        raise refusal
    check_protector(document, entry.id, master)
    return f"leads to {master.name}; its secret was not given"


def _without_person(access: KeystoreAccess, volume: Volume, entry: ProtectorEntry) -> Iterator[tuple[str, Maker]]:
    """Yield, by name, what may open *entry* without a person: this host, and key sources of its kind."""
    if entry.kind == ThisHostProtector.kind:
        yield "this host", lambda: ThisHostProtector(holders(access.settings(volume)))
    for settings in access.invocation.config.key_sources.values():
        if settings.kind == entry.kind:
            yield f'key source "{settings.name}"', partial(access.invocation.key_source, settings.name)

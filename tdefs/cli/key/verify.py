"""``tdefs key verify``: whether each protector and each round can be unwrapped now."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

from tdefs.cli.common.output import print_table
from tdefs.cli.common.place import volume_of
from tdefs.cli.common.this_host import holders
from tdefs.cli.common.unlocking import open_recorded, read_keystore, source_finder, unlocking_secret
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.checking import check_protector, check_round
from tdefs.keys.keystore.entries import ProtectorEntry
from tdefs.keys.keystore.file import Unlocked
from tdefs.keys.keystore.wrapped_keys import open_master_key
from tdefs.keys.protectors.base import NotMineError, Protector
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.volume.description import Volume

#: Returns a protector that needs no person, which making it may show to be unusable.
Maker = Callable[[], Protector]


def run_verify(args: argparse.Namespace) -> int:
    """``tdefs key verify``: changes nothing.

    :raises TdefsError: KEYSTORE_DAMAGED if a protector or a round leads nowhere; what a key source or this host
        raises that does not open its own protector.
    """
    volume = volume_of(args)
    keystore = read_keystore(args, volume)
    unlocked = open_recorded(keystore, unlocking_secret(args, volume, keystore), "key verify")
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
        makers = dict(_without_person(args, volume, entry))
        result = tried(partial(_check_protector, unlocked, entry, makers))
        rows.append((f"protector {entry.id}", result))
    for key in document.data_keys:
        for one in key.rounds:

            def check(name: str = key.name, number: int = one.round) -> str:
                return "unwraps" if check_round(document, name, number, master) else "destroyed"

            rows.append((f"data key {key.name} round {one.round}", tried(check)))
    print_table(("what", "result"), rows)
    damage = [error for error in errors if error.exit_code is Exit.KEYSTORE_DAMAGED]
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
    """Return what opens a protector, or that only its secret is missing."""
    document, master = unlocked.document, unlocked.master
    if entry.id == unlocked.protector_id:
        return f"opens {master.name} with the secret given"
    refusal: TdefsError | None = None
    for name, make in makers.items():
        try:
            open_master_key(document, entry, make())
        except NotMineError:
            continue
        except TdefsError as error:
            if error.exit_code is not Exit.NO_SECRET:  # such as a PIN, with nobody there to type it
                refusal = refusal or error
            continue
        return f"opens {master.name} by {name}"
    if refusal is not None:
        raise refusal
    check_protector(document, entry.id, master)
    return f"leads to {master.name}; its secret was not given"


def _without_person(
    args: argparse.Namespace, volume: Volume, entry: ProtectorEntry
) -> Iterator[tuple[str, Maker]]:
    """Yield by name what may open *entry* on this host by itself: the host, and key sources of its kind."""
    config = load_config(args.config)
    if entry.kind == ThisHostProtector.kind:
        yield "this host", lambda: ThisHostProtector(holders(config.for_backing(volume.backing)))
    for settings in config.key_sources.values():
        if settings.kind == entry.kind:
            yield f'key source "{settings.name}"', partial(source_finder(args), settings.name)

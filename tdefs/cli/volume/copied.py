"""``tdefs volume copied``: a keystore of its own for a second volume."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_line
from tdefs.cli.common.place import VolumeChoice
from tdefs.cli.common.secret_options import SecretOptions, protector_of
from tdefs.cli.common.unlocking import check_remembered, open_recorded
from tdefs.errors import Exit, TdefsError
from tdefs.keys.hierarchy import history_key_of
from tdefs.keys.keystore.copy import copy_command_directory, copy_keystore, remove_copy
from tdefs.keys.keystore.file import Unlocked, load_keystore
from tdefs.keys.keystore.wrapped_keys import FIRST_VOLUME
from tdefs.keys.protectors.command_text import command_directory
from tdefs.manifest.state import Binding, rebind_manifest
from tdefs.text import printable
from tdefs.volume.believed import book_of
from tdefs.volume.description import Volume, save_volume
from tdefs.volume.lock import exclusive
from tdefs.volume.registry import place_of, recognised, statements_of
from tdefs.volume.session_record import read_session


@dataclass(frozen=True, slots=True)
class CopiedOptions:
    """Of ``tdefs volume copied``."""

    volume: VolumeChoice
    keystore: Path | None
    existing_keystore: Path | None
    secret: SecretOptions


def run_copied(invocation: Invocation, options: CopiedOptions) -> int:
    """Give a second volume a copy of the keystore of the first one."""
    volume = options.volume.find_named()
    settings = invocation.config.for_backing(volume.backing)
    place = options.keystore or settings.keystore
    if place is None:
        raise TdefsError(
            Exit.USAGE,
            "where is its own keystore to be?",
            detail="neither the command line nor the configuration names a place",
            hint=f"tdefs volume copied {volume.backing} --keystore FILE",
        )
    place = place.absolute()
    source = load_keystore(options.existing_keystore or volume.keystore)
    source.check_volume(volume.volume_id)
    secret = options.secret.or_configured(settings)
    directory = command_directory(place)
    found_directory = directory.exists()
    with exclusive(volume):
        known = recognised(source.document, volume)
        if known is not None and len(source.document.volumes) == 1:
            raise TdefsError(
                Exit.VOLUME_REGISTERED,
                f'volume "{volume.backing}" is {known.id}, the only one that the keystore "{source.path}" knows',
                hint="it needs no other keystore; name the copy if that was meant",
            )
        try:
            protector = protector_of(invocation, secret, place)
            copy_command_directory(source.path, place)
            unlocked = open_recorded(source, protector, invocation.command)
            if options.existing_keystore is None:
                check_remembered(volume, unlocked)
            statements = statements_of(source.document, volume)
            ring = copy_keystore(source, place, protector, place_of(volume), statements)
            try:
                _copy_session(volume, unlocked, load_keystore(place).open(protector), place)
                save_volume(replace(volume, keystore=place), history_key_of(ring))
            except BaseException:
                remove_copy(place)
                raise
        except BaseException:
            if not found_directory:
                shutil.rmtree(directory, ignore_errors=True)
            raise
    invocation.changed = True
    print_line(
        f'volume "{printable(str(volume.backing))}" has a keystore of its own now: "{printable(str(place))}"'
    )
    print_line("keep a copy of it elsewhere, too; it opens by the same secrets until you change them")
    if known is not None:
        print_line(f"the old one knows the volume still: 'tdefs volume forget {known.id}' there ends that")
    return Exit.OK


def _copy_session(volume: Volume, old: Unlocked, new: Unlocked, keystore: Path) -> None:
    """Let the manifest and the record of the last session count as the copy's own.

    The keystore's copy has another history, and another key for that.
    """
    rebind_manifest(
        Binding.of(volume, old.ring, keystore, None),
        Binding.of(volume, new.ring, keystore, FIRST_VOLUME),
    )
    last = read_session(volume)
    if last is not None and last.is_authentic(history_key_of(old.ring)):
        authenticated = replace(last, volume="").authenticated(history_key_of(new.ring))
        book_of(volume, FIRST_VOLUME, new, keystore).take_over(authenticated)

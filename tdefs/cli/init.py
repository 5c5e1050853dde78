"""``tdefs init``: create a volume and its keystore."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.secret_options import CostOption, SecretOptions, add_cost, add_secret, protector_of
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.unlocking import add_config, open_recorded
from tdefs.cli.policy.accept import statements_with
from tdefs.cli.policy.choice import PolicyOptions, add_policy, named_policy
from tdefs.errors import Exit
from tdefs.keys.hierarchy import KeyRing, history_key_of
from tdefs.keys.keystore.copy import copy_command_directory, copy_keystore, remove_copy
from tdefs.keys.keystore.entries import Statements
from tdefs.keys.keystore.file import (
    FIRST_DATA_KEY,
    Keystore,
    create_keystore,
    load_keystore,
    remove_what_is_not_saved,
)
from tdefs.keys.protectors.base import Protector
from tdefs.keys.protectors.command_text import command_directory
from tdefs.policy.model import Policy
from tdefs.volume.description import Volume, abandon_volume, create_volume, refuse_existing, save_volume
from tdefs.volume.lock import exclusive
from tdefs.volume.policy_choice import PolicyChoice
from tdefs.volume.registry import place_of


def register(subparsers: Subcommands) -> None:
    """Add the command ``init``."""
    parser = subparsers.add_parser(
        "init",
        help="create a volume and its keystore",
        description="Creates a volume in an empty directory, and a keystore with a master key and the data "
        "keys that the policy names (dk_1 without a policy). The volume remembers the place of "
        "the keystore. The keystore remembers the accepted policy. The configuration may say what "
        "the command line leaves out. With --existing-keystore the new keystore is a copy, and "
        "the command asks for a secret of the old one.",
    )
    parser.add_argument("backing", metavar="BACKING", type=Path, help="the directory that will hold ciphertext")
    parser.add_argument("--keystore", metavar="FILE", type=Path, help="default: BACKING/.tdefs/keystore")
    parser.add_argument(
        "--existing-keystore",
        metavar="FILE",
        type=Path,
        help="copy this keystore instead of making new keys, as for a standby",
    )
    add_policy(parser, "default: everything is encrypted")
    add_secret(parser)
    add_cost(parser)
    add_config(parser)
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    backing: Path
    keystore: Path | None
    existing_keystore: Path | None
    policy: PolicyOptions
    secret: SecretOptions
    cost: CostOption


def _run(invocation: Invocation, options: _Options) -> int:
    settings = invocation.config.for_backing(options.backing)
    options = replace(
        options,
        keystore=options.keystore or settings.keystore,
        secret=options.secret.or_configured(settings),
    )
    choice = named_policy(options.policy, settings) or PolicyChoice(None, Policy.everything())
    names = {FIRST_DATA_KEY} | choice.policy.key_names()
    source = load_keystore(options.existing_keystore) if options.existing_keystore else None
    with _no_directories_left(options.backing):
        volume, ring = _create(invocation, options, choice, source, names)
    invocation.changed = True
    print_line(f"volume    {volume.backing} ({volume.volume_id.hex()})")
    print_line(f"keystore  {volume.keystore} (data keys {', '.join(ring.names())})")
    print_line(f"policy    {choice.file or 'none: everything is encrypted'}")
    print_line("\nKeep a copy of the keystore elsewhere: without it nobody can read the volume, not even you.")
    directory = command_directory(volume.keystore)
    if directory.exists():
        print_line(f"The same holds for {directory}, which has the key command's own files.")
    if source is not None:
        print_line(
            f"It is a copy of {source.path}, which this volume does not need; do not leave that lying about."
        )
    print_line(f"Mount it with: tdefs mount {volume.backing} MOUNTPOINT")
    return Exit.OK


@contextmanager
def _no_directories_left(backing: Path) -> Iterator[None]:
    """After a failure in the ``with`` block remove the empty directories that it made on the way to *backing*."""
    absent = [place for place in (backing, *backing.parents) if not os.path.lexists(place)]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in absent:
                place.rmdir()
        raise


def _create(
    invocation: Invocation,
    options: _Options,
    choice: PolicyChoice,
    source: Keystore | None,
    names: set[str],
) -> tuple[Volume, KeyRing]:
    """Create the volume and its keystore."""
    volume = create_volume(options.backing, options.keystore)
    if source is not None:
        volume = replace(volume, volume_id=source.volume_id)
    with exclusive(volume):
        # another 'tdefs init' may have finished while this one waited for a passphrase
        refuse_existing(volume.backing)
        ring, protector = _complete(
            invocation, options, volume, source, names, statements_with(Statements(), choice)
        )
        event = "keystore create" if source is None else "unlock"  # a copy's history has begun already
        open_recorded(load_keystore(volume.keystore), protector, "init", event, keys=" ".join(ring.names()))
    return volume, ring


def _complete(
    invocation: Invocation,
    options: _Options,
    volume: Volume,
    source: Keystore | None,
    names: set[str],
    statements: Statements,
) -> tuple[KeyRing, Protector]:
    """Create the keystore and make the directory a volume, or leave nothing behind."""
    directory = command_directory(volume.keystore)
    found_directory = directory.exists()
    try:
        protector = protector_of(
            invocation, options.secret, volume.keystore, confirm=source is None, cost=options.cost
        )
        if source is not None:
            copy_command_directory(source.path, volume.keystore)
            ring = copy_keystore(source, volume.keystore, protector, place_of(volume), statements)
        else:
            # the first name becomes the default data key
            ordered = [FIRST_DATA_KEY, *sorted(names - {FIRST_DATA_KEY})]
            ring = create_keystore(
                volume.keystore,
                volume.volume_id,
                protector,
                data_key_names=ordered,
                place=place_of(volume),
                statements=statements,
                warn=warn,
            )
        try:
            save_volume(volume, history_key_of(ring))
        except BaseException:
            if source is not None:
                remove_copy(volume.keystore)
            else:
                entries = load_keystore(volume.keystore).document.protectors
                volume.keystore.unlink()
                remove_what_is_not_saved(volume.keystore, protector, entries, warn)
            raise
    except BaseException:
        abandon_volume(volume)
        if not found_directory:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    return ring, protector

"""``tdefs init``: create a volume and its keystore."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tdefs.cli.common.output import print_line
from tdefs.cli.common.secret_arguments import add_scrypt_cost, add_unlock_arguments, secret_from_arguments
from tdefs.cli.common.terminal import warn
from tdefs.cli.common.unlocking import add_config, open_recorded, source_finder, use_configured_secret
from tdefs.cli.policy.accept import statements_with
from tdefs.cli.policy.choice import add_policy_arguments, named_policy
from tdefs.config import load_config
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
from tdefs.keys.protectors.command_files import command_directory
from tdefs.policy.model import Policy
from tdefs.volume.description import Volume, abandon_volume, create_volume, exclusive, refuse_existing, save_volume
from tdefs.volume.policy_choice import PolicyChoice
from tdefs.volume.registry import place_of


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``init``."""
    parser = subparsers.add_parser(
        "init",
        help="create a volume and its keystore",
        description="Creates a volume in an empty directory, and a keystore with a master key and the data keys "
        "that the policy names (dk_1 without one). The volume remembers the place of the keystore, and the "
        "keystore which policy is accepted. What the command line leaves out, the configuration may say. With "
        "--existing-keystore the keys are those of another volume, whose secret is then asked for.",
    )
    parser.add_argument("backing", metavar="BACKING", type=Path, help="the directory that will hold ciphertext")
    parser.add_argument("--keystore", metavar="FILE", type=Path, help="default: BACKING/.tdefs/keystore")
    parser.add_argument(
        "--existing-keystore",
        metavar="FILE",
        type=Path,
        help="copy this keystore, with its keys and protectors, instead of making new keys: for a standby",
    )
    add_policy_arguments(parser, "default: everything is encrypted")
    add_unlock_arguments(parser)
    add_scrypt_cost(parser)
    add_config(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    settings = load_config(args.config).for_backing(args.backing)
    use_configured_secret(args, settings)
    choice = named_policy(args, settings) or PolicyChoice(None, Policy.everything())
    names = {FIRST_DATA_KEY} | choice.policy.key_names()
    source = load_keystore(args.existing_keystore) if args.existing_keystore else None
    with _no_directories_left(args.backing):
        volume, ring = _create(args, args.keystore or settings.keystore, choice, source, names)
    args.changed = True
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
    """After a failure in the ``with`` block remove what directories it made on the way to *backing*, if empty."""
    absent = [place for place in (backing, *backing.parents) if not os.path.lexists(place)]
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in absent:
                place.rmdir()
        raise


def _create(
    args: argparse.Namespace,
    keystore: Path | None,
    choice: PolicyChoice,
    source: Keystore | None,
    names: set[str],
) -> tuple[Volume, KeyRing]:
    """Create the volume and its keystore."""
    volume = create_volume(args.backing, keystore)
    if source is not None:
        volume = replace(volume, volume_id=source.volume_id)
    with exclusive(volume):
        # another 'tdefs init' may have finished while this one waited for a passphrase
        refuse_existing(volume.backing)
        ring, protector = _complete(volume, source, names, statements_with(Statements(), choice), args)
        event = "keystore create" if source is None else "unlock"  # a copy's history has begun already
        open_recorded(load_keystore(volume.keystore), protector, "init", event, keys=" ".join(ring.names()))
    return volume, ring


def _complete(
    volume: Volume, source: Keystore | None, names: set[str], statements: Statements, args: argparse.Namespace
) -> tuple[KeyRing, Protector]:
    """Create the keystore and make the directory a volume, or leave nothing behind."""
    directory = command_directory(volume.keystore)
    found_directory = directory.exists()
    try:
        protector = secret_from_arguments(args, volume.keystore, source_finder(args), confirm=source is None)
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

"""``tdefs key``: the life of data keys and master keys."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_users import add_unseen
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.place import add_volume
from tdefs.cli.common.unlocking import add_keystore, add_keystore_access
from tdefs.cli.key import change as key_change
from tdefs.cli.key import history as key_history
from tdefs.cli.key import show as key_show
from tdefs.cli.key.verify import VerifyOptions, run_verify

_Options = TypeVar("_Options")


def register(subparsers: Subcommands) -> None:
    """Add the command ``key`` with its subcommands."""
    parser = subparsers.add_parser(
        "key",
        help="create, rotate, revoke and destroy keys, and read their history",
    )
    commands = subcommands(parser)
    _register_changes(commands)

    listing = commands.add_parser("list", help="list the data keys with their rounds; needs no secret")
    _add_unlocked(listing, json=True)
    takes(listing, key_show.ListOptions, key_show.run_list)

    show = commands.add_parser("show", help="show a data key and how many files use it")
    show.add_argument("name", metavar="NAME")
    _add_unlocked(show, argument=False, json=True)
    takes(show, key_show.ShowOptions, key_show.run_show)

    verify = commands.add_parser("verify", help="check that each protector and each round can be unwrapped")
    _add_locked(verify, VerifyOptions, run_verify)

    history = commands.add_parser("history", help="show who unlocked and changed the keystore")
    history.add_argument("--key", metavar="NAME", help="show only changes of this data key")
    history.add_argument(
        "--unchecked", action="store_true", help="show it without a secret and without checking its MACs"
    )
    history.add_argument("--json", action="store_true", help="print JSON")
    _add_locked(history, key_history.HistoryOptions, key_history.run_history)

    mend = commands.add_parser("repair", help="clean up after a change that was stopped")
    _add_unlocked(mend)
    takes(mend, key_change.RepairOptions, key_change.run_repair)


def _register_changes(commands: Subcommands) -> None:
    create = commands.add_parser("create", help="make a data key, for use in the policy")
    create.add_argument("name", metavar="NAME", help="such as dk_2")
    _add_locked(create, key_change.CreateOptions, key_change.run_create, argument=False)

    rotate = commands.add_parser("rotate", help="start a new round, which new files use at once")
    rotate.add_argument("name", metavar="NAME")
    _add_locked(rotate, key_change.RotateOptions, key_change.run_rotate, argument=False)

    revoke = commands.add_parser("revoke", help="stop new files from using the key, or one round of it")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument("--round", metavar="N", type=_round_number, help="default: all rounds")
    add_unseen(revoke)
    _add_locked(revoke, key_change.RevokeOptions, key_change.run_revoke, argument=False)

    destroy = commands.add_parser("destroy", help="delete a revoked key, or one revoked round, for ever")
    destroy.add_argument("name", metavar="NAME")
    destroy.add_argument("--round", metavar="N", type=_round_number, help="default: all rounds")
    destroy.add_argument(
        "--destroy-files-of",
        metavar="NAME",
        help="confirm with the name that files under it may become unreadable for ever",
    )
    add_unseen(destroy)
    _add_locked(destroy, key_change.DestroyOptions, key_change.run_destroy, argument=False)

    master = commands.add_parser("rotate-master", help="make a new master key and wrap all keys with it")
    add_unseen(master)
    _add_locked(master, key_change.RotateMasterOptions, key_change.run_rotate_master)

    reload = commands.add_parser("reload", help="let the daemon of a mounted volume read the keystore again")
    _add_locked(reload, key_change.ReloadOptions, key_change.run_reload)


def _add_locked(
    parser: argparse.ArgumentParser,
    options: type[_Options],
    run: Callable[[Invocation, _Options], int],
    *,
    argument: bool = True,
) -> None:
    add_volume(parser, argument=argument)
    add_keystore_access(parser)
    takes(parser, options, run)


def _add_unlocked(parser: argparse.ArgumentParser, *, argument: bool = True, json: bool = False) -> None:
    add_volume(parser, argument=argument)
    add_keystore(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")


def _round_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError("a round is a number, such as 2")
    return int(text)

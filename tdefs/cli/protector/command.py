"""``tdefs protector``: who can unlock the keystore."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.keystore_users import add_unseen
from tdefs.cli.common.new_secret_arguments import add_new_secret_arguments, new_secret_from_arguments
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.place import add_place, volume_of
from tdefs.cli.common.this_host import forget_here, holders
from tdefs.cli.common.unlocking import (
    add_keystore_arguments,
    add_keystore_place,
    open_recorded,
    read_keystore,
    source_finder,
    unlocking_secret,
)
from tdefs.cli.protector.recovery_code_output import show_code
from tdefs.cli.protector.wrapping_key_end import destroy_wrapping_key, source_with_key_of
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.fields import show_time
from tdefs.keys.keystore.changes import (
    add_protector,
    change_protector,
    find_protector,
    label_protector,
    remove_protector,
    restore_protector,
)
from tdefs.keys.keystore.entries import Document, ProtectorEntry
from tdefs.keys.keystore.wrapped_keys import check_mac, open_master_key
from tdefs.keys.protectors.base import NotMineError, Protector, WrongSecretError
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.volume.description import Volume

_OPENS = "opens"
_OTHER_SECRET = "does not open"  # noqa: S105 - what is said of one
_OTHER_KIND = "of another kind"
_NO_KEY = "its wrapping key is unusable"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``protector`` with its sub-commands."""
    parser = subparsers.add_parser(
        "protector", help="who can unlock the keystore: add, remove, change, label, list, test"
    )
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    add = commands.add_parser("add", help="add a way to unlock the keystore")
    add_place(add)
    add.add_argument("--label", default="", help="a note for people, such as a name")
    add_new_secret_arguments(add, "--recovery-code", "--new-recovery-code")
    add_keystore_arguments(add, recovery_prompt=False)
    add.set_defaults(run=_add)

    change = commands.add_parser("change", help="give a protector a new secret, perhaps of another kind")
    change.add_argument("id", metavar="ID", help="such as pr_1")
    add_place(change)
    add_new_secret_arguments(change, "--new-recovery-code")
    add_unseen(change)
    add_keystore_arguments(change)
    change.set_defaults(run=_change)

    label = commands.add_parser("label", help="give a protector another label; its secret stays")
    label.add_argument("id", metavar="ID", help="such as pr_1")
    label.add_argument("label", metavar="TEXT", help='a note for people, such as a name; "" for none')
    add_place(label)
    add_keystore_arguments(label)
    label.set_defaults(run=_label)

    remove = commands.add_parser("remove", help="remove a protector; the last one stays")
    remove.add_argument("id", metavar="ID", help="such as pr_2")
    remove.add_argument(
        "--destroy-wrapping-key",
        action="store_true",
        help="also destroy the key that the key server has for this protector alone; older copies of the keystore "
        "then do not open by it, either",
    )
    add_unseen(remove)
    add_place(remove)
    add_keystore_arguments(remove)
    remove.set_defaults(run=_remove)

    listing = commands.add_parser("list", help="list the protectors; needs no secret")
    add_place(listing)
    add_keystore_place(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)

    test = commands.add_parser("test", help="say which protectors the given secret opens")
    test.add_argument("--id", metavar="ID", help="this one must be among them")
    add_place(test)
    add_keystore_arguments(test)
    test.set_defaults(run=_test)


def _add(args: argparse.Namespace) -> int:
    with changing(args, volume_of(args), "protector add") as change:
        protector, code = new_secret_from_arguments(args, change.path, source_finder(args))
        new, id = add_protector(change.unlocked, protector, args.label)
        change.save(new, [protector], maker=protector, protector=id, kind=protector.kind, label=args.label or None)
        if code is not None:

            def take_back() -> None:
                change.save(remove_protector(change.unlocked, id), protector=id, error=Exit.OS_ERROR.name)

            show_code(code, id, unread_is_lost=False, take_back=take_back)
        change.tell_revision()
    print_line(f"protector {id} ({protector.kind}) is added")
    return Exit.OK


def _change(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    with changing(args, volume, "protector change", sees_all=True) as change:
        old = find_protector(change.document, args.id)
        protector, code = new_secret_from_arguments(args, change.path, source_finder(args))
        new = change_protector(change.unlocked, args.id, protector)
        change.save(new, [protector], maker=protector, protector=args.id, kind=protector.kind)
        if code is not None:

            def take_back() -> None:
                change.save(restore_protector(change.unlocked, old), protector=old.id, error=Exit.OS_ERROR.name)

            show_code(code, old.id, unread_is_lost=True, take_back=take_back)
        _forget_host_key(args, volume, old)
        change.tell_revision()
    print_line(f"protector {args.id} ({protector.kind}) has a new secret; the old one opens the keystore no more")
    return Exit.OK


def _label(args: argparse.Namespace) -> int:
    with changing(args, volume_of(args), "protector label") as change:
        new = label_protector(change.unlocked, args.id, args.label)
        change.save(new, protector=args.id, label=args.label)
        change.tell_revision()
    print_line(
        f'protector {args.id} has the label "{args.label}"' if args.label else f"protector {args.id} has no label"
    )
    return Exit.OK


def _remove(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    with changing(args, volume, "protector remove", sees_all=True) as change:
        entry = find_protector(change.document, args.id)
        key = source_with_key_of(args, volume.backing, entry) if args.destroy_wrapping_key else None
        # what opened the keystore may be what goes
        change.save(remove_protector(change.unlocked, args.id), [], protector=args.id, kind=entry.kind)
        _forget_host_key(args, volume, entry)
        change.tell_revision()
        rest = ", ".join(_described(one) for one in change.document.protectors)
    print_line(f"protector {_described(entry)} is removed; left: {rest}")
    if key is not None:
        source, uid = key
        destroy_wrapping_key(source, uid, entry)
        print_line(f"its wrapping key {uid} is destroyed")
    return Exit.OK


def _forget_host_key(args: argparse.Namespace, volume: Volume, entry: ProtectorEntry) -> None:
    """Remove the host key of *entry* if it is this host's: with it, an old copy of the keystore would open."""
    protector = ThisHostProtector(holders(load_config(args.config).for_backing(volume.backing)))
    if entry.kind == protector.kind:
        forget_here(protector, entry)


def _described(entry: ProtectorEntry) -> str:
    return f"{entry.id} ({entry.kind})"


def _list(args: argparse.Namespace) -> int:
    document = read_keystore(args, volume_of(args)).document
    if args.json:
        print_json([_as_object(entry) for entry in document.protectors])
    else:
        print_table(
            ("id", "kind", "label", "created"),
            [(one.id, one.kind, one.label or None, show_time(one.created)) for one in document.protectors],
        )
    return Exit.OK


def _as_object(entry: ProtectorEntry) -> dict[str, Any]:
    """Return the JSON object of a protector; its keys are part of the interface."""
    return {
        "id": entry.id,
        "kind": entry.kind,
        "label": entry.label,
        "created": show_time(entry.created),
        "master_key": entry.master_key,
    }


def _test(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    keystore = read_keystore(args, volume)
    document = keystore.document
    if args.id is not None:
        find_protector(document, args.id)
    protector = unlocking_secret(args, volume, keystore)
    with suppress(WrongSecretError):  # of which the table tells
        open_recorded(keystore, protector, "protector test")
    results = {entry.id: _tried(document, entry, protector) for entry in document.protectors}
    print_table(
        ("id", "kind", "label", "result"),
        [(one.id, one.kind, one.label or None, results[one.id]) for one in document.protectors],
    )
    wanted = [results[args.id]] if args.id is not None else list(results.values())
    if _OPENS not in wanted:
        raise TdefsError(
            Exit.WRONG_SECRET,
            f"{protector.words} does not open {f'protector {args.id}' if args.id else 'any protector'}",
        )
    return Exit.OK


def _tried(document: Document, entry: ProtectorEntry, protector: Protector) -> str:
    try:
        master = open_master_key(document, entry, protector)
    except NotMineError:
        return _OTHER_KIND
    except WrongSecretError:
        return _OTHER_SECRET
    except TdefsError as error:
        if error.exit_code is not Exit.WRAPPING_KEY_UNUSABLE:
            raise
        return _NO_KEY
    if entry.master_key == document.current_master_key().name:
        check_mac(document, master)
    return _OPENS

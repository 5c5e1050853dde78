"""``tdefs protector``: the ways to unlock the keystore."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.keystore_users import add_unseen
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.secret_options import NewSecretOptions, add_new_secret
from tdefs.cli.common.this_host import forget_here, holders
from tdefs.cli.common.unlocking import (
    KeystoreAccess,
    add_keystore,
    add_keystore_access,
    open_recorded,
    read_keystore,
    unlocking_secret,
)
from tdefs.cli.protector.recovery_code_output import show_code
from tdefs.cli.protector.wrapping_key_end import destroy_wrapping_key, source_with_key_of
from tdefs.errors import Exit, TdefsError
from tdefs.keys.failures import UnusableError
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


def register(subparsers: Subcommands) -> None:
    """Add the command ``protector`` with its subcommands."""
    parser = subparsers.add_parser("protector", help="manage the secrets that unlock the keystore")
    commands = subcommands(parser)

    add = commands.add_parser("add", help="add a way to unlock the keystore")
    add_volume(add)
    add.add_argument("--label", default="", help="a note for people, such as a name")
    add_new_secret(add, "--recovery-code", "--new-recovery-code")
    add_keystore_access(add, recovery_prompt=False)
    takes(add, _AddOptions, _add)

    change = commands.add_parser("change", help="give a protector a new secret, also of another kind")
    change.add_argument("id", metavar="ID", help="such as pr_1")
    add_volume(change, argument=False)
    add_new_secret(change, "--new-recovery-code")
    add_unseen(change)
    add_keystore_access(change)
    takes(change, _ChangeOptions, _change)

    label = commands.add_parser("label", help="give a protector another label")
    label.add_argument("id", metavar="ID", help="such as pr_1")
    label.add_argument("label", metavar="TEXT", help='a note for people, such as a name; "" for none')
    add_volume(label, argument=False)
    add_keystore_access(label)
    takes(label, _LabelOptions, _label)

    remove = commands.add_parser("remove", help="remove a protector, but not the last one")
    remove.add_argument("id", metavar="ID", help="such as pr_2")
    remove.add_argument(
        "--destroy-wrapping-key",
        action="store_true",
        help="also destroy the key that the key server keeps for this protector alone",
    )
    add_unseen(remove)
    add_volume(remove, argument=False)
    add_keystore_access(remove)
    takes(remove, _RemoveOptions, _remove)

    listing = commands.add_parser("list", help="list the protectors; needs no secret")
    add_volume(listing)
    add_keystore(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    takes(listing, _ListOptions, _list)

    test = commands.add_parser("test", help="show which protectors a secret opens")
    test.add_argument("--id", metavar="ID", help="fail unless the secret opens this protector")
    add_volume(test)
    add_keystore_access(test)
    takes(test, _TestOptions, _test)


@dataclass(frozen=True, slots=True)
class _AddOptions:
    label: str
    new: NewSecretOptions
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _ChangeOptions:
    id: str
    new: NewSecretOptions
    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _LabelOptions:
    id: str
    label: str
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _RemoveOptions:
    id: str
    destroy_wrapping_key: bool
    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _ListOptions:
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


@dataclass(frozen=True, slots=True)
class _TestOptions:
    id: str | None
    volume: VolumeChoice
    access: KeystoreAccess


def _add(_invocation: Invocation, options: _AddOptions) -> int:
    with changing(options.access, options.volume.find()) as change:
        protector, code = options.new.protector(change.path)
        new, id = add_protector(change.unlocked, protector, options.label)
        change.save(
            new, [protector], maker=protector, protector=id, kind=protector.kind, label=options.label or None
        )
        if code is not None:

            def take_back() -> None:
                change.save(remove_protector(change.unlocked, id), protector=id, error=Exit.OS_ERROR.name)

            show_code(code, id, unread_is_lost=False, take_back=take_back)
        change.tell_revision()
    print_line(f"protector {id} ({protector.kind}) is added")
    return Exit.OK


def _change(_invocation: Invocation, options: _ChangeOptions) -> int:
    volume = options.volume.find()
    about = {"protector": options.id}
    with changing(options.access, volume, about=about, unseen=options.unseen_volume) as change:
        old = find_protector(change.document, options.id)
        protector, code = options.new.protector(change.path)
        new = change_protector(change.unlocked, options.id, protector)
        change.save(new, [protector], maker=protector, protector=options.id, kind=protector.kind)
        if code is not None:

            def take_back() -> None:
                change.save(restore_protector(change.unlocked, old), protector=old.id, error=Exit.OS_ERROR.name)

            show_code(code, old.id, unread_is_lost=True, take_back=take_back)
        _forget_host_key(options.access, volume, old)
        change.tell_revision()
    print_line(
        f"protector {options.id} ({protector.kind}) has a new secret; the old one does not open it any more"
    )
    return Exit.OK


def _label(_invocation: Invocation, options: _LabelOptions) -> int:
    with changing(options.access, options.volume.find(), about={"protector": options.id}) as change:
        new = label_protector(change.unlocked, options.id, options.label)
        change.save(new, protector=options.id, label=options.label)
        change.tell_revision()
    print_line(
        f'protector {options.id} has the label "{options.label}"'
        if options.label
        else f"protector {options.id} has no label"
    )
    return Exit.OK


def _remove(_invocation: Invocation, options: _RemoveOptions) -> int:
    volume = options.volume.find()
    about = {"protector": options.id}
    with changing(options.access, volume, about=about, unseen=options.unseen_volume) as change:
        entry = find_protector(change.document, options.id)
        key = source_with_key_of(options.access, volume, entry) if options.destroy_wrapping_key else None
        # what opened the keystore may be what goes
        change.save(remove_protector(change.unlocked, options.id), [], protector=options.id, kind=entry.kind)
        _forget_host_key(options.access, volume, entry)
        change.tell_revision()
        rest = ", ".join(_described(one) for one in change.document.protectors)
    print_line(f"protector {_described(entry)} is removed; left: {rest}")
    if key is not None:
        source, uid = key
        destroy_wrapping_key(source, uid, entry)
        print_line(f"its wrapping key {uid} is destroyed")
    return Exit.OK


def _forget_host_key(access: KeystoreAccess, volume: Volume, entry: ProtectorEntry) -> None:
    """Remove the host key of *entry* if it is this host's: with it, an old copy of the keystore would open."""
    protector = ThisHostProtector(holders(access.settings(volume)))
    if entry.kind == protector.kind:
        forget_here(protector, entry)


def _described(entry: ProtectorEntry) -> str:
    return f"{entry.id} ({entry.kind})"


def _list(_invocation: Invocation, options: _ListOptions) -> int:
    document = read_keystore(options.access, options.volume.find()).document
    if options.json:
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


def _test(invocation: Invocation, options: _TestOptions) -> int:
    volume = options.volume.find()
    keystore = read_keystore(options.access, volume)
    document = keystore.document
    if options.id is not None:
        find_protector(document, options.id)
    protector = unlocking_secret(options.access, volume, keystore)
    with suppress(WrongSecretError):  # the table shows it
        open_recorded(keystore, protector, invocation.command)
    results = {entry.id: _tried(document, entry, protector) for entry in document.protectors}
    print_table(
        ("id", "kind", "label", "result"),
        [(one.id, one.kind, one.label or None, results[one.id]) for one in document.protectors],
    )
    wanted = [results[options.id]] if options.id is not None else list(results.values())
    if _OPENS not in wanted:
        raise TdefsError(
            Exit.WRONG_SECRET,
            f"{protector.words} does not open {f'protector {options.id}' if options.id else 'any protector'}",
        )
    return Exit.OK


def _tried(document: Document, entry: ProtectorEntry, protector: Protector) -> str:
    try:
        master = open_master_key(document, entry, protector)
    except NotMineError:
        return _OTHER_KIND
    except WrongSecretError:
        return _OTHER_SECRET
    except UnusableError:
        return _NO_KEY
    if entry.master_key == document.current_master_key().name:
        check_mac(document, master)
    return _OPENS

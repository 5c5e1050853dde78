"""``tdefs auto-open``: whether this host opens the keystore without a person."""

from __future__ import annotations

import argparse
import socket
from typing import Any

from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.keystore_users import add_unseen
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.place import add_place, volume_of
from tdefs.cli.common.this_host import HostEntry, forget_here, holders, not_enabled, survey
from tdefs.cli.common.unlocking import add_keystore_arguments, add_keystore_place, open_recorded, read_keystore
from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.changes import add_protector, remove_protector
from tdefs.keys.keystore.entries import MAX_LABEL_CHARACTERS
from tdefs.keys.machine import secure_boot_is_on
from tdefs.keys.protectors.this_host import ThisHostProtector
from tdefs.keys.protectors.this_host_tpm import PCRS, TpmHolder
from tdefs.keys.tpm import Tpm

# The PCR that measures the state of Secure Boot.
_SECURE_BOOT = "7"
# What each of them is worth, said when it is chosen.
_TPM_WORTH = """\
It is bound to this machine's TPM: a copy of the keystore, a backup or the bare disk opens nowhere else.
Whoever can start this machine, or is root on it, still has all that is needed: this is no help against a
stolen machine that boots by itself."""
_TPM_STATE = """\
The TPM gives the key only while its PCRs {pcrs} are as they are now. A change of what they measure (7: Secure
Boot, its keys) ends that: another secret opens the keystore then, and 'tdefs auto-open enable' renews it."""
_TPM_ANY_STATE = """\
The TPM gives the key whatever is started on this machine, since no PCRs are named (Secure Boot is off, or not to
be asked for)."""
_HOST_KEY_WORTH = """\
A host key is a file that only root, or the daemon's own user, can read. It keeps out whoever has a copy of the
keystore, or a backup of the volume, without this machine's system disk. Whoever has that disk, a backup of it, or
root, has all that is needed to open the keystore. Leave {directory} out of backups."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``auto-open`` with its sub-commands."""
    parser = subparsers.add_parser(
        "auto-open",
        help="let this host, and no other, open the keystore without a person: enable, disable, status",
    )
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)

    enable = commands.add_parser(
        "enable",
        help="have this host open the keystore; needs one secret that opens it",
        description="Adds a protector for this host, bound to its TPM, or, where there is none, to a host key: a"
        " file that only root, or the daemon's own user, can read. One that this host has already is replaced.",
    )
    chosen = enable.add_mutually_exclusive_group()
    chosen.add_argument("--tpm", action="store_true", help="by the TPM (the default where there is one)")
    chosen.add_argument("--host-key", action="store_true", help="by a host key")
    enable.add_argument(
        "--pcrs",
        metavar="N[,N]|none",
        type=_pcrs,
        help="only while these PCRs of the TPM stay as they are; default: 7 where Secure Boot is on, else none",
    )
    enable.add_argument("--label", help="a note for people; default: this host's name")
    add_unseen(enable)
    add_place(enable)
    add_keystore_arguments(enable)
    enable.set_defaults(run=_enable)

    disable = commands.add_parser(
        "disable", help="have this host open the keystore no more; another secret is needed from then on"
    )
    add_unseen(disable)
    add_place(disable)
    add_keystore_arguments(disable)
    disable.set_defaults(run=_disable)

    status = commands.add_parser("status", help="say whether this host opens the keystore, and by what")
    add_place(status)
    add_keystore_place(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)


def _pcrs(text: str) -> str:
    if text in ("", "none"):
        return ""
    if not PCRS.fullmatch(text):
        raise argparse.ArgumentTypeError("PCRs are numbers from 0 to 23, such as 7 or 0,7, or none")
    return text


def _enable(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    pcrs = args.pcrs
    if pcrs is None:
        # what the firmware checks before it starts anything: with it off another system could be started
        pcrs = _SECURE_BOOT if secure_boot_is_on() else ""
    tpm, host_key = kept = holders(load_config(args.config).for_backing(volume.backing), pcrs)
    keeper = tpm if not args.host_key and (args.tpm or args.pcrs or Tpm().is_there()) else host_key
    if keeper is host_key and args.pcrs:
        raise TdefsError(Exit.USAGE, "--pcrs is of the TPM, and a host key has none")
    protector = ThisHostProtector(kept, keeper=keeper)
    label = socket.gethostname()[:MAX_LABEL_CHARACTERS] if args.label is None else args.label
    with changing(args, volume, "auto-open enable", sees_all=True) as change:
        old = [one.entry for one in survey(change.document, protector) if one.is_mine]
        new, id = add_protector(change.unlocked, protector, label)
        for entry in old:
            new = remove_protector(new, entry.id)
        change.save(new, [protector], maker=protector, protector=id, kind=protector.kind, by=keeper.name)
        for entry in old:
            forget_here(protector, entry)
        change.tell_revision()
    print_line(
        f"protector {id}{f' ({label})' if label else ''}: this host opens the keystore by {keeper.title} now"
    )
    if keeper is tpm:
        print_line(_TPM_STATE.format(pcrs=pcrs) if pcrs else _TPM_ANY_STATE)
    print_line(_TPM_WORTH if keeper is tpm else _HOST_KEY_WORTH.format(directory=host_key.directory))
    return Exit.OK


def _disable(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    protector = ThisHostProtector(holders(load_config(args.config).for_backing(volume.backing)))
    with changing(args, volume, "auto-open disable", sees_all=True) as change:
        found = survey(change.document, protector)
        mine = [one.entry for one in found if one.is_mine]
        if not mine:
            raise not_enabled(found)
        new = change.unlocked
        for entry in mine:
            new = remove_protector(new, entry.id)
        # what opened the keystore may be what goes
        change.save(new, [], protector=", ".join(entry.id for entry in mine), kind=protector.kind)
        for entry in mine:
            forget_here(protector, entry)
        change.tell_revision()
        rest = ", ".join(f"{one.id} ({one.kind})" for one in change.document.protectors)
    print_line(f"this host does not open the keystore any more; left: {rest}")
    if any(entry.params.get("by") == TpmHolder.name for entry in mine):
        print_line("copies of the keystore made before still open on this host, until its TPM is cleared")
    return Exit.OK


def _status(args: argparse.Namespace) -> int:
    volume = volume_of(args)
    keystore = read_keystore(args, volume)
    protector = ThisHostProtector(holders(load_config(args.config).for_backing(volume.backing)))
    found = survey(keystore.document, protector)
    opening = [one for one in found if one.opens]
    if opening:
        open_recorded(keystore, protector, "auto-open status")
    if args.json:
        print_json({"opens": bool(opening), "protectors": [_as_object(one) for one in found]})
        return Exit.OK
    if found:
        print_table(
            ("id", "label", "kept by", "result"),
            [(one.entry.id, one.entry.label or None, one.title, _result(one)) for one in found],
        )
        print_line()
    if opening:
        print_line(f"this host opens the keystore by {opening[0].title}")
        return Exit.OK
    print_line("this host does not open the keystore")
    refusal = next((one.refusal for one in found if one.refusal is not None), None)
    if refusal is not None:
        raise refusal
    return Exit.OK


def _result(one: HostEntry) -> str:
    if one.refusal is not None:
        return "does not open"
    return "opens" if one.is_mine else "of another host"


def _as_object(one: HostEntry) -> dict[str, Any]:
    """Return the JSON object of an entry; its keys are part of the interface."""
    return {
        "id": one.entry.id,
        "label": one.entry.label,
        "by": one.entry.params.get("by"),
        "this_host": one.is_mine,
        "opens": one.opens,
        "reason": one.refusal.message if one.refusal is not None else None,
    }

"""``tdefs auto-open``: whether this host opens the keystore without a person."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.keystore_change import changing
from tdefs.cli.common.keystore_users import add_unseen
from tdefs.cli.common.output import print_json, print_line, print_table
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.this_host import HostEntry, forget_here, holders, not_enabled, survey
from tdefs.cli.common.unlocking import (
    KeystoreAccess,
    add_keystore,
    add_keystore_access,
    open_recorded,
    read_keystore,
)
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.changes import add_protector, remove_protector
from tdefs.keys.keystore.entries import MAX_LABEL_CHARACTERS
from tdefs.keys.protectors.this_host import ThisHostProtector, secure_boot_is_on
from tdefs.keys.protectors.this_host_holders import PCRS, TpmHolder
from tdefs.keys.tpm import Tpm

# The PCR that measures the state of Secure Boot.
_SECURE_BOOT = "7"
# What each of them protects against; printed when it is chosen.
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
A host key is a file that only root, or the daemon's own user, can read. It keeps out somebody who has a copy of
the keystore, or a backup of the volume, without this machine's system disk. Somebody who has that disk, or a
backup of it, can open the keystore, and so can root. Leave {directory} out of backups."""


def register(subparsers: Subcommands) -> None:
    """Add the command ``auto-open`` with its subcommands."""
    parser = subparsers.add_parser(
        "auto-open",
        help="let this host unlock the keystore without a person",
    )
    commands = subcommands(parser)

    enable = commands.add_parser(
        "enable",
        help="let this host unlock the keystore; needs a secret that unlocks it",
        description="Adds a protector for this host. It is bound to the TPM, or, without a TPM, to a host "
        "key: a file that only root, or the daemon's own user, can read. A protector that this "
        "host already has is replaced.",
    )
    chosen = enable.add_mutually_exclusive_group()
    chosen.add_argument("--tpm", action="store_true", help="bind to the TPM (default, if there is one)")
    chosen.add_argument("--host-key", action="store_true", help="bind to a host key, which is a file")
    enable.add_argument(
        "--pcrs",
        metavar="N[,N]|none",
        type=_pcrs,
        help="bind to the state of these PCRs of the TPM; default: 7 if Secure Boot is on, else none",
    )
    enable.add_argument("--label", help="a note for people; default: this host's name")
    add_unseen(enable)
    add_volume(enable)
    add_keystore_access(enable)
    takes(enable, _EnableOptions, _enable)

    disable = commands.add_parser("disable", help="stop this host from unlocking the keystore")
    add_unseen(disable)
    add_volume(disable)
    add_keystore_access(disable)
    takes(disable, _DisableOptions, _disable)

    status = commands.add_parser("status", help="show whether this host unlocks the keystore, and how")
    add_volume(status)
    add_keystore(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    takes(status, _StatusOptions, _status)


def _pcrs(text: str) -> str:
    if text in ("", "none"):
        return ""
    if not PCRS.fullmatch(text):
        raise argparse.ArgumentTypeError("PCRs are numbers from 0 to 23, such as 7 or 0,7, or none")
    return text


@dataclass(frozen=True, slots=True)
class _EnableOptions:
    tpm: bool
    host_key: bool
    pcrs: str | None
    label: str | None
    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _DisableOptions:
    unseen_volume: Sequence[str]
    volume: VolumeChoice
    access: KeystoreAccess


@dataclass(frozen=True, slots=True)
class _StatusOptions:
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


def _enable(_invocation: Invocation, options: _EnableOptions) -> int:
    volume = options.volume.find()
    pcrs = options.pcrs
    if pcrs is None:
        # with Secure Boot off, the firmware would start another system
        pcrs = _SECURE_BOOT if secure_boot_is_on() else ""
    tpm, host_key = kept = holders(options.access.settings(volume), pcrs)
    keeper = tpm if not options.host_key and (options.tpm or options.pcrs or Tpm().is_there()) else host_key
    if keeper is host_key and options.pcrs:
        raise TdefsError(Exit.USAGE, "--pcrs is of the TPM, and a host key has none")
    protector = ThisHostProtector(kept, keeper=keeper)
    label = socket.gethostname()[:MAX_LABEL_CHARACTERS] if options.label is None else options.label
    with changing(options.access, volume, unseen=options.unseen_volume) as change:
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


def _disable(_invocation: Invocation, options: _DisableOptions) -> int:
    volume = options.volume.find()
    protector = ThisHostProtector(holders(options.access.settings(volume)))
    with changing(options.access, volume, unseen=options.unseen_volume) as change:
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


def _status(invocation: Invocation, options: _StatusOptions) -> int:
    volume = options.volume.find()
    keystore = read_keystore(options.access, volume)
    protector = ThisHostProtector(holders(options.access.settings(volume)))
    found = survey(keystore.document, protector)
    opening = [one for one in found if one.opens]
    if opening:
        open_recorded(keystore, protector, invocation.command)
    if options.json:
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

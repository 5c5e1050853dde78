"""``tdefs policy``: check a policy file, explain which of its rules decides for a path, accept it, reload it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.output import print_line
from tdefs.cli.common.parsing import Subcommands, subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore, keystore_path
from tdefs.cli.policy.accept import add_accept
from tdefs.cli.policy.reload import add_reload
from tdefs.errors import Exit, TdefsError
from tdefs.keys.keystore.file import load_keystore
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.policy.paths import classify
from tdefs.volume.registry import statements_of


def register(subparsers: Subcommands) -> None:
    """Add the command ``policy`` with its subcommands."""
    parser = subparsers.add_parser(
        "policy", help="check a policy, explain what it decides, accept it, have a mount reload it"
    )
    commands = subcommands(parser)

    check = commands.add_parser("check", help="check a policy file and print each error with its line")
    check.add_argument("file", metavar="FILE", type=Path)
    takes(check, _CheckOptions, _check)

    explain = commands.add_parser("explain", help="explain what a path is, whether it is encrypted, and why")
    explain.add_argument(
        "path", metavar="PATH", help="relative to the mount point, as pg_relation_filepath() prints it"
    )
    explain.add_argument("--policy", metavar="FILE", type=Path, help="ask this policy")
    add_volume(explain, argument=False, help="ask the policy that the keystore has for this volume")
    explain.add_argument("--json", action="store_true", help="print JSON")
    add_keystore(explain)
    takes(explain, _ExplainOptions, _explain)

    add_accept(commands)
    add_reload(commands)


@dataclass(frozen=True, slots=True)
class _CheckOptions:
    file: Path


@dataclass(frozen=True, slots=True)
class _ExplainOptions:
    path: str
    policy: Path | None
    volume: VolumeChoice
    access: KeystoreAccess
    json: bool


def _check(_invocation: Invocation, options: _CheckOptions) -> int:
    policy = load_policy(options.file, draft=True)
    for warning in policy.warnings:
        print_line(f"warning: {warning}")
    counts = (
        _count(sum(len(entries) for entries in policy.relfilenodes.values()), "relfilenode rule"),
        _count(len(policy.databases), "database rule"),
        _count(len(policy.kinds), "kind rule"),
        _count(len(policy.warnings), "warning"),
    )
    keys = ", ".join(sorted(policy.key_names())) or "the default one only"
    print_line(f"{options.file}: OK: {', '.join(counts)}; data keys: {keys}")
    return Exit.OK


def _explain(_invocation: Invocation, options: _ExplainOptions) -> int:
    role = classify(options.path.strip("/"))
    decision = _policy(options).decide(role, options.path.strip("/"))
    answer: dict[str, str | int | bool | None] = {
        "path": options.path,
        "kind": role.kind.value,
        "database": role.relation.database if role.relation else None,
        "relfilenode": role.relation.relfilenode if role.relation else None,
        "fork": role.relation.fork if role.relation else None,
        "segment": role.relation.segment if role.relation else None,
        "encrypted": decision.encrypted,
        "data_key": decision.key_name,
        "rule": decision.rule,
        "why": decision.why,
    }
    if options.json:
        print(json.dumps(answer, indent=2))
        return Exit.OK
    answer["encrypted"] = "yes" if decision.encrypted else "no, plain"
    if decision.encrypted and decision.key_name is None:
        answer["data_key"] = "the keystore's default data key"
    for name, value in answer.items():
        if value is not None:
            print_line(f"{name.replace('_', ' ') + ':':<13}{value}")
    return Exit.OK


def _policy(options: _ExplainOptions) -> Policy:
    path = options.policy
    if options.volume.named is not None:
        if path is not None:
            raise TdefsError(Exit.USAGE, "which policy? both --policy and --volume are given")
        volume = options.volume.find()
        document = load_keystore(keystore_path(options.access, volume)).document
        text = statements_of(document, volume).policy
        path = Path(text) if text else None
    return Policy.everything() if path is None else load_policy(path)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

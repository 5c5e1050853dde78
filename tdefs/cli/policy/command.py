"""``tdefs policy``: check a policy file, explain which of its rules decides for a path, accept it, reload it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tdefs.cli.common.output import print_line
from tdefs.cli.common.unlocking import add_keystore_place, keystore_path
from tdefs.cli.policy.accept import add_accept
from tdefs.cli.policy.reload import add_reload
from tdefs.keys.keystore.file import load_keystore
from tdefs.policy.model import Policy
from tdefs.policy.parse import load_policy
from tdefs.policy.paths import classify
from tdefs.volume.description import read_volume
from tdefs.volume.registry import statements_of


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``policy`` with its sub-commands."""
    parser = subparsers.add_parser(
        "policy",
        help="check a policy file, explain what it decides, accept it for a volume, have a mount reload it",
    )
    commands = parser.add_subparsers(dest="policy_command", metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="validate a policy file; every error with its line")
    check.add_argument("file", metavar="FILE", type=Path)
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="say what a path is, whether it is encrypted, and why")
    explain.add_argument(
        "path", metavar="PATH", help="relative to the mount point, as pg_relation_filepath() prints it"
    )
    source = explain.add_mutually_exclusive_group()
    source.add_argument("--policy", metavar="FILE", type=Path, help="the policy to ask")
    source.add_argument(
        "--backing", metavar="BACKING", type=Path, help="ask the policy that the keystore of this volume has"
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    add_keystore_place(explain)
    explain.set_defaults(run=_explain)

    add_accept(commands)
    add_reload(commands)


def _check(args: argparse.Namespace) -> int:
    policy = load_policy(args.file, draft=True)
    for warning in policy.warnings:
        print_line(f"warning: {warning}")
    counts = (
        _count(sum(len(entries) for entries in policy.relfilenodes.values()), "relfilenode rule"),
        _count(len(policy.databases), "database rule"),
        _count(len(policy.kinds), "kind rule"),
        _count(len(policy.warnings), "warning"),
    )
    keys = ", ".join(sorted(policy.key_names())) or "the default one only"
    print_line(f"{args.file}: OK: {', '.join(counts)}; data keys: {keys}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    role = classify(args.path.strip("/"))
    decision = _policy(args).decide(role, args.path.strip("/"))
    answer: dict[str, str | int | bool | None] = {
        "path": args.path,
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
    if args.json:
        print(json.dumps(answer, indent=2))
        return 0
    answer["encrypted"] = "yes" if decision.encrypted else "no, plain"
    if decision.encrypted and decision.key_name is None:
        answer["data_key"] = "the keystore's default data key"
    for name, value in answer.items():
        if value is not None:
            print_line(f"{name.replace('_', ' ') + ':':<13}{value}")
    return 0


def _policy(args: argparse.Namespace) -> Policy:
    path: Path | None = args.policy
    if args.backing is not None:
        volume = read_volume(args.backing)
        document = load_keystore(keystore_path(args, volume)).document
        text = statements_of(document, volume).policy
        path = Path(text) if text else None
    return Policy.everything() if path is None else load_policy(path)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

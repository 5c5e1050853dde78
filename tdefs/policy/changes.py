"""What a new policy leaves in the clear that the old one encrypted, in words for people; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tdefs.policy.model import FAIL_CLOSED_KINDS, Policy, Rule
from tdefs.policy.paths import Kind


def newly_plain(old: Policy, new: Policy) -> list[str]:
    """Return the rules by which *new* may leave files in the clear that *old* encrypts.

    It may name a rule too many, since it does not know which files exist.
    """
    return [*_kinds(old, new), *_databases(old, new), *_relfilenodes(old, new)]


def _kinds(old: Policy, new: Policy) -> Iterator[str]:
    for kind in Kind:
        before, now = _rule_for(old, kind), _rule_for(new, kind)
        if not now.encrypted and before.encrypted:
            yield f"files of the kind {kind}: {now.text}"


def _rule_for(policy: Policy, kind: Kind) -> Rule:
    rule = policy.kinds.get(kind)
    if rule is not None:
        return rule
    if kind in FAIL_CLOSED_KINDS:
        return policy.unlisted or Rule(True, None, "what no rule names is encrypted")
    return policy.default


def _databases(old: Policy, new: Policy) -> Iterator[str]:
    yield from _compared(old.databases, new.databases, "database {}")


def _relfilenodes(old: Policy, new: Policy) -> Iterator[str]:
    def ranges(policy: Policy) -> dict[str, Rule]:
        return {
            f"{entry.first} to {entry.last} of database {database}": entry.rule
            for database, entries in policy.relfilenodes.items()
            for entry in entries
        }

    yield from _compared(ranges(old), ranges(new), "relfilenodes {}")


def _compared(old: Mapping[Any, Rule], new: Mapping[Any, Rule], words: str) -> Iterator[str]:
    for scope, rule in new.items():
        if not rule.encrypted and (scope not in old or old[scope].encrypted):
            yield f"{words.format(scope)}: {rule.text}"
    for scope, rule in old.items():
        if rule.encrypted and scope not in new:
            yield f"{words.format(scope)}: the rule that encrypts is gone"

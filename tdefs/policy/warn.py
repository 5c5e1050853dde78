"""Warnings about files that a valid policy leaves in the clear, and that hold data of encrypted relations."""

from __future__ import annotations

from collections.abc import Iterator

from tdefs.policy.model import Policy
from tdefs.policy.paths import Kind

_CARRIES_CONTENTS = {
    Kind.WAL: "WAL carries the rows of every relation",
    Kind.TEMP: "sorts, hashes and temporary tables write rows of relations to temporary files",
    Kind.REPLICATION: "logical decoding spills rows of relations to pg_replslot",
    Kind.STATISTICS: "pg_stat_statements keeps the text of queries, with values, beside the statistics",
}


def warnings_of(policy: Policy) -> list[str]:
    """Return the policy's warnings. Each begins with the place of the rule that causes it."""
    return [*_exposed_kinds(policy), *_exposed_relations(policy)]


def _exposed_kinds(policy: Policy) -> Iterator[str]:
    for kind, reason in _CARRIES_CONTENTS.items():
        rule = policy.kinds.get(kind, policy.default)
        if not rule.encrypted:
            yield f"{rule.text}: leaves the kind {kind} in the clear while relations are encrypted: {reason}"
    catalog = policy.kinds.get(Kind.CATALOG)
    if catalog is not None and not catalog.encrypted:
        yield (
            f"{catalog.text}: pg_statistic holds values of columns and pg_largeobject holds large objects, "
            f"also those of encrypted relations"
        )


def _exposed_relations(policy: Policy) -> Iterator[str]:
    for database, ranges in policy.relfilenodes.items():
        if not policy.encrypts_relfilenodes_of(database):
            continue
        for entry in ranges:
            if not entry.rule.encrypted:
                yield (
                    f"{entry.rule.text}: other relfilenodes of the database are encrypted; a table rewrite that "
                    f"gives one of them a number listed here would write it in the clear"
                )
        rule = policy.databases.get(database)
        if rule is not None and not rule.encrypted:
            yield (
                f"{rule.text}: relfilenodes of the database are named as encrypted, so the rule reaches only its "
                f"catalogs (with pg_statistic, which holds values of columns), not its unlisted relations, since "
                f"a table rewrite gives an encrypted relation a new relfilenode"
            )

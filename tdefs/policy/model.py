"""The policy as a value: it decides whether a file that is about to be created is encrypted.

A policy never says how an existing file is read; the file's own header does (invariant 2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from tdefs.policy.paths import FileRole, Kind, database_directory

FAIL_CLOSED_KINDS = frozenset({Kind.RELATION, Kind.CATALOG, Kind.STRAY})
"""Kinds to which ``default: plain`` does not apply: relation files, and what may become one by a rename."""

NEVER_PLAIN_KINDS = frozenset({Kind.RELATION, Kind.STRAY})
"""Kinds that no rule for kinds may make plain."""

_DATABASE_DIRECTORY_KINDS = frozenset({Kind.RELATION_MAP, Kind.RELCACHE, Kind.VERSION})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule's outcome and its place. ``key`` is a data key's name; None means the keystore's default."""

    encrypted: bool
    key: str | None
    text: str
    """The rule with its place, for people: ``policy.yaml:7: database 16384: plain``."""


@dataclass(frozen=True, slots=True)
class RelfilenodeRange:
    """A rule for the relfilenodes ``first`` to ``last``, both included."""

    first: int
    last: int
    rule: Rule


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a new file. ``key_name`` None with ``encrypted`` means the keystore's default data key."""

    encrypted: bool
    key_name: str | None
    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy; ``relfilenodes`` holds, for each database, disjoint ranges in ascending order."""

    default: Rule
    unlisted: Rule | None = None
    relfilenodes: Mapping[int, tuple[RelfilenodeRange, ...]] = field(default_factory=dict)
    databases: Mapping[int, Rule] = field(default_factory=dict)
    kinds: Mapping[Kind, Rule] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def everything(cls) -> Self:
        """Return the policy of a volume without a policy: all files encrypted with the default data key."""
        return cls(default=Rule(True, None, "no policy: everything is encrypted"))

    def key_names(self) -> frozenset[str]:
        """Return the names of all data keys that any rule uses."""
        return frozenset(rule.key for rule in self._rules() if rule.key is not None)

    def leaves_anything_plain(self) -> bool:
        """Return whether any rule leaves files in the clear."""
        return not all(rule.encrypted for rule in self._rules())

    def digest(self) -> str:
        """Return hexadecimal digits that are the same for two policies exactly if all their rules decide alike."""
        rules = (
            _outcome(self.default),
            self.unlisted and _outcome(self.unlisted),
            [
                (database, [(entry.first, entry.last, _outcome(entry.rule)) for entry in entries])
                for database, entries in sorted(self.relfilenodes.items())
            ],
            [(database, _outcome(rule)) for database, rule in sorted(self.databases.items())],
            [(str(kind), _outcome(rule)) for kind, rule in sorted(self.kinds.items())],
        )
        return sha256(repr(rules).encode()).hexdigest()

    def _rules(self) -> list[Rule]:
        """Return all rules."""
        ranges = [entry.rule for entries in self.relfilenodes.values() for entry in entries]
        rules = [self.default, self.unlisted, *ranges, *self.databases.values(), *self.kinds.values()]
        return [rule for rule in rules if rule is not None]

    def encrypts_relfilenodes_of(self, database: int) -> bool:
        """Return whether a rule names relfilenodes of the database as encrypted."""
        return any(entry.rule.encrypted for entry in self.relfilenodes.get(database, ()))

    def decide(self, role: FileRole, relpath: str) -> Decision:
        """Return whether a file created now at ``relpath`` is encrypted, with which data key, and why."""
        if role.kind in FAIL_CLOSED_KINDS:
            return self._decide_relation(role, relpath)
        if role.kind is Kind.TEMP and role.relation is not None:
            # A temporary table may hold a copy of an encrypted one: a plain database must not expose it.
            rule = self.databases.get(role.relation.database)
            if rule is not None and rule.encrypted:
                return _by(rule, "the rule of the temporary relation's database")
        elif role.kind in _DATABASE_DIRECTORY_KINDS and self.databases:
            database = database_directory(relpath)
            if database is not None and database in self.databases:
                return _by(self.databases[database], "the rule of the database in whose directory it lies")
        if role.kind in self.kinds:
            return _by(self.kinds[role.kind], f"the rule for the kind {role.kind}")
        return _by(self.default, f"no rule names the kind {role.kind}, so the default holds")

    def _decide_relation(self, role: FileRole, relpath: str) -> Decision:
        database = role.relation.database if role.relation else database_directory(relpath)
        overridden = ""
        if database is not None:
            if role.relation and (rule := self._relfilenode_rule(database, role.relation.relfilenode)):
                return _by(rule, "the rule that names its relfilenode")
            rule = self.databases.get(database)
            if rule is not None:
                # A table rewrite (VACUUM FULL, ALTER TABLE, TRUNCATE) moves an encrypted relation to a new
                # relfilenode, which no rule can name in advance: RelationSetNewRelfilenumber() in
                # src/backend/utils/cache/relcache.c. New numbers start at FirstNormalObjectId.
                rewritable = role.kind is not Kind.CATALOG and self.encrypts_relfilenodes_of(database)
                if rule.encrypted or not rewritable:
                    return _by(rule, "the rule of its database")
                overridden = (
                    f"; the database is plain ({rule.text}), but other relfilenodes of it are encrypted "
                    f"and a table rewrite may have given one of them this number"
                )
        if role.kind in self.kinds:
            return _by(self.kinds[role.kind], f"the rule for the kind {role.kind}{overridden}")
        return self._unlisted(role.kind, overridden)

    def _unlisted(self, kind: Kind, overridden: str) -> Decision:
        why = f"no rule names this {kind} file, so it is encrypted{overridden}"
        if self.unlisted is not None:
            return _by(self.unlisted, why)
        if self.default.encrypted:
            return _by(self.default, why)
        return Decision(True, None, f"fail closed, in spite of {self.default.text}", why)

    def _relfilenode_rule(self, database: int, relfilenode: int) -> Rule | None:
        ranges = self.relfilenodes.get(database, ())
        index = bisect_right(ranges, relfilenode, key=lambda entry: entry.first) - 1
        if index >= 0 and relfilenode <= ranges[index].last:
            return ranges[index].rule
        return None


def _outcome(rule: Rule) -> tuple[bool, str | None]:
    return rule.encrypted, rule.key


def _by(rule: Rule, why: str) -> Decision:
    return Decision(rule.encrypted, rule.key, rule.text, why)

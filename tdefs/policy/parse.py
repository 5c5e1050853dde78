"""From the policy's YAML text to a :class:`Policy`, or to an error that names every wrong line."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from tdefs.errors import Exit
from tdefs.policy.model import NEVER_PLAIN_KINDS, Policy, RelfilenodeRange, Rule
from tdefs.policy.paths import MAX_OID, Kind
from tdefs.policy.warn import warnings_of
from tdefs.trust import check_trusted
from tdefs.yamlfile import (
    Mapping,
    Node,
    Problems,
    Scalar,
    Sequence,
    check_version,
    describe,
    items,
    known_fields,
    parse_yaml,
    read_limited,
)

_FIELDS = ("version", "default", "unlisted_relations", "relations", "databases", "kinds")
_RELATION_FIELDS = ("database", "relfilenodes", "key")
_DATABASE_FIELDS = ("database", "key")

_KEY_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_RANGE = re.compile(r"([0-9]{1,10})(?: *- *([0-9]{1,10}))?")


def load_policy(path: Path, *, draft: bool = False) -> Policy:
    """Return the policy in the file at ``path``.

    :param draft: whether the policy is not in use, so that others may be able to change it.
    :raises TdefsError: POLICY_INVALID, also if the file cannot be read; CONFIG_EXPOSED if others could change it.
    """
    if not draft:
        check_trusted(path, "policy file")
    return parse_policy(read_limited(path, Exit.POLICY_INVALID, "policy file"), str(path))


def parse_policy(data: bytes, source: str) -> Policy:
    """Return the policy in ``data``; ``source`` is the file's name for messages.

    :raises TdefsError: POLICY_INVALID, with a line ``SOURCE:LINE: message`` for each error.
    """
    problems = Problems(source, Exit.POLICY_INVALID)
    root = parse_yaml(data, problems)
    fields = known_fields(root, _FIELDS, "a policy", problems)
    check_version(fields, root.line, problems)
    reader = _Reader(source, problems)
    default = Rule(True, None, f"{source}: no default is given: the keystore's default data key")
    if "default" in fields:
        default = reader.rule(fields["default"], "default") or default
    unlisted = None
    if "unlisted_relations" in fields:
        unlisted = reader.rule(fields["unlisted_relations"], "unlisted_relations", plain_allowed=False)
    relfilenodes, repeated = reader.relfilenodes(fields.get("relations"))
    databases = reader.databases(fields.get("databases"))
    kinds = reader.kinds(fields.get("kinds"))
    problems.raise_if_any()
    policy = Policy(default, unlisted, relfilenodes, databases, kinds)
    return replace(policy, warnings=(*repeated, *warnings_of(policy)))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A range as written, before overlaps are resolved."""

    range: RelfilenodeRange
    line: int


class _Reader:
    """Reads the parts of one policy, and records what is wrong with them."""

    def __init__(self, source: str, problems: Problems) -> None:
        self._source = source
        self._problems = problems

    def rule(self, node: Node, what: str, *, plain_allowed: bool = True) -> Rule | None:
        """Read a data key's name or ``plain``."""
        wanted = "a data key's name or plain" if plain_allowed else "a data key's name"
        if not isinstance(node, Scalar) or node.is_null or node.is_boolean:
            self._problems.add(node.line, f"{what} must be {wanted}, not {describe(node)}")
            return None
        text = f"{self._source}:{node.line}: {what}: {node.text}"
        if node.text == "plain":
            if plain_allowed:
                return Rule(False, None, text)
            self._problems.add(
                node.line,
                f"{what} must not be plain",
                hint="A relation file that no rule names is always encrypted, since a table rewrite may have "
                "given an encrypted relation a new relfilenode. To leave relations in the clear, name their "
                "relfilenodes or their database.",
            )
            return None
        if _KEY_NAME.fullmatch(node.text) is None:
            self._problems.add(
                node.line,
                f"{what}: {describe(node)} is not {wanted}",
                hint="A data key's name is up to 31 lower-case letters, digits and underscores, "
                "beginning with a letter.",
            )
            return None
        return Rule(True, node.text, text)

    def kinds(self, node: Node | None) -> dict[Kind, Rule]:
        if node is None:
            return {}
        rules = {}
        for name, value in known_fields(node, list(Kind), "kinds", self._problems).items():
            kind = Kind(name)
            rule = self.rule(value, f"kinds: {kind}", plain_allowed=kind not in NEVER_PLAIN_KINDS)
            if rule is not None:
                rules[kind] = rule
        return rules

    def databases(self, node: Node | None) -> dict[int, Rule]:
        rules: dict[int, Rule] = {}
        lines: dict[int, int] = {}
        for item in items(node, "databases", self._problems) if node is not None else ():
            fields = self._required(item, _DATABASE_FIELDS, "an item of databases")
            database = self._database(fields.get("database"))
            if database is None or "key" not in fields:
                continue
            rule = self.rule(fields["key"], f"database {database}")
            if database in lines:
                self._problems.add(
                    item.line, f"a second rule for database {database}, the first is on line {lines[database]}"
                )
            elif rule is not None:
                rules[database] = rule
            lines.setdefault(database, item.line)
        return rules

    def relfilenodes(self, node: Node | None) -> tuple[dict[int, tuple[RelfilenodeRange, ...]], list[str]]:
        """Return the disjoint ranges of each database, and warnings for relfilenodes that are listed twice."""
        entries: dict[int, list[_Entry]] = {}
        for item in items(node, "relations", self._problems) if node is not None else ():
            fields = self._required(item, _RELATION_FIELDS, "an item of relations")
            database = self._database(fields.get("database"))
            spans = []
            if "relfilenodes" in fields:
                numbers = items(fields["relfilenodes"], "relfilenodes", self._problems)
                if fields["relfilenodes"] == Sequence(fields["relfilenodes"].line):
                    self._problems.add(fields["relfilenodes"].line, "relfilenodes is an empty list")
                spans = [(self._span(number), number.line) for number in numbers]
            rule = self.rule(fields["key"], "key") if "key" in fields else None
            if database is None or rule is None:
                continue
            for span, line in spans:
                if span is not None:
                    text = f"{self._source}:{line}: relfilenodes {_span_text(span)} of database {database}"
                    text += f": {rule.key or 'plain'}"
                    entry = _Entry(RelfilenodeRange(*span, replace(rule, text=text)), line)
                    entries.setdefault(database, []).append(entry)
        repeated: list[str] = []
        return {database: self._disjoint(database, entries[database], repeated) for database in entries}, repeated

    def _disjoint(self, database: int, entries: list[_Entry], repeated: list[str]) -> tuple[RelfilenodeRange, ...]:
        """Sort the ranges and remove overlaps: an error if the outcomes differ, a warning if they agree."""
        kept: list[_Entry] = []
        for entry in sorted(entries, key=lambda entry: (entry.range.first, entry.line)):
            span = entry.range
            if kept and span.first <= kept[-1].range.last:
                other = kept[-1]
                overlap = (span.first, min(span.last, other.range.last))
                first, second = sorted((other, entry), key=lambda entry: entry.line)
                what = f"relfilenode {_span_text(overlap)} of database {database}"
                if (span.rule.encrypted, span.rule.key) != (other.range.rule.encrypted, other.range.rule.key):
                    self._problems.add(
                        second.line,
                        f"contradiction: {what} is {second.range.rule.key or 'plain'} here "
                        f"and {first.range.rule.key or 'plain'} on line {first.line}",
                    )
                    continue
                repeated.append(
                    f"{self._source}:{second.line}: {what} is listed twice, first on line {first.line}"
                )
                if span.last <= other.range.last:
                    continue
                entry = _Entry(replace(span, first=other.range.last + 1), entry.line)
            kept.append(entry)
        return tuple(entry.range for entry in kept)

    def _required(self, node: Node, names: tuple[str, ...], what: str) -> dict[str, Node]:
        fields = known_fields(node, names, what, self._problems)
        missing = [name for name in names if name not in fields]
        if missing and isinstance(node, Mapping):
            self._problems.add(node.line, f"{what} lacks {' and '.join(missing)}")
        return fields

    def _database(self, node: Node | None) -> int | None:
        if node is None:
            return None
        if isinstance(node, Scalar) and not node.quoted and _NUMBER.fullmatch(node.text):
            number = int(node.text)
            if number <= MAX_OID:
                return number
        self._problems.add(
            node.line,
            f"database must be a number from 0 to {MAX_OID}, not {describe(node)}",
            hint="SELECT oid, datname FROM pg_database shows the number; 0 stands for shared relations.",
        )
        return None

    def _span(self, node: Node) -> tuple[int, int] | None:
        match = _RANGE.fullmatch(node.text) if isinstance(node, Scalar) else None
        if match is None:
            self._problems.add(
                node.line,
                f"expected a relfilenode or a range of them, not {describe(node)}",
                hint="Write 16385 or 16390-16400; SELECT pg_relation_filepath('table') shows the relfilenode.",
            )
            return None
        first, last = match[1], match[2] or match[1]
        for text in (first, last):
            if text.startswith("0") or int(text) > MAX_OID:
                self._problems.add(node.line, f"relfilenode {text} is not a number from 1 to {MAX_OID}")
                return None
        if int(first) > int(last):
            self._problems.add(
                node.line, f"the range {first}-{last} is empty", hint=f"Perhaps you meant {last}-{first}."
            )
            return None
        return int(first), int(last)


def _span_text(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"

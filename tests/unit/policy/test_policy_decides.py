"""Which rule of a policy decides, and that it fails closed. Covers tdefs/policy/model.py and warn.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdefs.policy.model import NEVER_PLAIN_KINDS, Decision, Policy
from tdefs.policy.parse import parse_policy
from tdefs.policy.paths import Kind, classify

POLICY = b"""\
version: 1
default: plain
unlisted_relations: dk_9
relations:
  - database: 16384
    relfilenodes: [16385, 16390-16400, 1259]
    key: dk_2
  - {database: 16384, relfilenodes: [16500], key: plain}
databases:
  - {database: 16384, key: plain}
  - {database: 16401, key: plain}
  - {database: 16402, key: dk_3}
kinds:
  wal: dk_1
  temp: dk_4
"""


def decide(policy: Policy, path: str) -> Decision:
    return policy.decide(classify(path), path)


def outcome(decision: Decision) -> str | None:
    return decision.key_name if decision.encrypted else "plain"


@pytest.mark.parametrize(
    ("path", "expected", "line"),
    [
        # by relfilenode: all forks and segments, in whatever tablespace
        ("base/16384/16385", "dk_2", 6),
        ("base/16384/16385_fsm.1", "dk_2", 6),
        ("pg_tblspc/17000/PG_15_202209061/16384/16400_vm", "dk_2", 6),
        ("base/16384/1259", "dk_2", 6),
        ("base/16384/16500_init", "plain", 8),
        # the plain database rule does not reach what a rewrite may have made
        ("base/16384/16389", "dk_9", 3),
        ("base/16384/16401", "dk_9", 3),
        ("base/16384/.16385.Xy12ab", "dk_9", 3),
        ("base/16384/2619", "plain", 10),
        ("base/16384/PG_VERSION", "plain", 10),
        # whole databases
        ("base/16401/16385", "plain", 11),
        ("base/16401/16385.pgbackrest.tmp", "plain", 11),
        ("base/16402/16385", "dk_3", 12),
        ("base/16402/pg_filenode.map", "dk_3", 12),
        ("base/16402/pg_internal.init.77", "dk_3", 12),
        # temporary relations
        ("base/16401/t3_16385", "dk_4", 15),
        ("base/16384/t3_16500", "dk_4", 15),
        ("base/16402/t3_16385", "dk_3", 12),
        # kinds and the default
        ("pg_wal/000000010000000000000001", "dk_1", 14),
        ("base/pgsql_tmp/pgsql_tmp1.0", "dk_4", 15),
        ("pg_xact/0000", "plain", 2),
        ("global/pg_filenode.map", "plain", 2),
        ("global/1260", "dk_9", 3),
        ("base/5/16385", "dk_9", 3),
    ],
)
def test_the_most_specific_rule_decides_and_is_named(path: str, expected: str, line: int) -> None:
    decision = decide(parse_policy(POLICY, "policy.yaml"), path)
    assert outcome(decision) == expected
    assert decision.rule.startswith(f"policy.yaml:{line}: ")
    assert decision.why


def test_without_a_policy_everything_is_encrypted_with_the_default_key() -> None:
    policy = Policy.everything()
    for path in ("base/5/1259", "pg_wal/x", "postgresql.conf", "whatever", "base/5/t1_2"):
        assert outcome(decide(policy, path)) is None
        assert decide(policy, path).encrypted
    assert policy.key_names() == frozenset()


def test_without_a_default_everything_else_is_encrypted() -> None:
    policy = parse_policy(b"version: 1\nkinds: {configuration: plain}", "p")
    assert outcome(decide(policy, "postgresql.conf")) == "plain"
    assert outcome(decide(policy, "PG_VERSION")) is None
    assert outcome(decide(policy, "base/5/16384")) is None


def test_a_plain_default_does_not_reach_relation_files() -> None:
    policy = parse_policy(b"version: 1\ndefault: plain", "p")
    for path in ("base/5/16384", "base/5/1259", "global/1260", "base/5/16384.tmp", "16384/16385"):
        assert decide(policy, path).encrypted
        assert decide(policy, path).key_name is None
    assert not decide(policy, "pg_xact/0000").encrypted


def test_unlisted_relations_use_the_default_key_if_there_is_one() -> None:
    assert outcome(decide(parse_policy(b"version: 1\ndefault: dk_7", "p"), "base/5/16384")) == "dk_7"


def test_a_kind_rule_for_catalogs_can_leave_them_plain_but_not_a_rewritten_one() -> None:
    policy = parse_policy(b"version: 1\ndefault: dk_1\nkinds: {catalog: plain}", "p")
    assert outcome(decide(policy, "base/5/1259")) == "plain"
    assert outcome(decide(policy, "base/5/16390")) == "dk_1"
    assert any("pg_statistic" in warning for warning in policy.warnings)


def test_key_names_lists_every_data_key_of_the_policy() -> None:
    policy = parse_policy(POLICY, "p")
    assert policy.key_names() == {"dk_1", "dk_2", "dk_3", "dk_4", "dk_9"}


def test_warnings_name_what_leaks_contents_of_encrypted_relations() -> None:
    warnings = parse_policy(POLICY, "p").warnings
    assert [warning.split(": ")[0] for warning in warnings] == ["p:2", "p:2", "p:8", "p:10"]
    assert "kind replication" in warnings[0]
    assert "kind statistics" in warnings[1]
    assert "would write it in the clear" in warnings[2]
    assert "reaches only its catalogs" in warnings[3]


def test_a_policy_that_encrypts_all_contents_has_no_warnings() -> None:
    assert parse_policy(b"version: 1\ndefault: dk_1\nkinds: {slru: plain, log: plain}", "p").warnings == ()


# Policies as JSON, which is YAML; numbers are few so that rules and files meet often.
databases = st.sampled_from([0, 5, 16384])
relfilenodes = st.integers(16380, 16392)
targets = st.sampled_from(["plain", "dk_1", "dk_2"])
relation_rules: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"database": databases, "relfilenodes": st.lists(relfilenodes, min_size=1), "key": targets}
)
database_rules: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({"database": databases, "key": targets})
kinds_with_rules = st.sampled_from(sorted(set(Kind) - NEVER_PLAIN_KINDS))
policies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "relations": st.lists(relation_rules, max_size=3),
        "databases": st.lists(database_rules, max_size=3, unique_by=lambda rule: str(rule["database"])),
        "kinds": st.dictionaries(kinds_with_rules, targets),
    },
    optional={"default": targets, "unlisted_relations": st.sampled_from(["dk_1", "dk_2"])},
)


@given(policies, databases, relfilenodes, st.sampled_from(["", "_fsm", "_vm.1", "_init", ".2"]))
def test_plain_is_never_the_decision_for_an_unlisted_relfilenode(
    document: dict[str, Any], database: int, relfilenode: int, suffix: str
) -> None:
    claims: dict[tuple[int, int], set[str]] = {}
    for rule in document["relations"]:
        for number in rule["relfilenodes"]:
            claims.setdefault((rule["database"], number), set()).add(rule["key"])
    assume(all(len(keys) == 1 for keys in claims.values()))
    policy = parse_policy(json.dumps(document).encode(), "p")

    directory = "global" if database == 0 else f"base/{database}"
    decision = decide(policy, f"{directory}/{relfilenode}{suffix}")

    encrypts_some = any("plain" not in keys for (where, _), keys in claims.items() if where == database)
    if (database, relfilenode) in claims:
        assert outcome(decision) in claims[database, relfilenode]
    elif not decision.encrypted:
        by_database = {"database": database, "key": "plain"} in document["databases"]
        if relfilenode < 16384:
            assert by_database or document["kinds"].get("catalog") == "plain"
        else:
            assert by_database
            assert not encrypts_some
